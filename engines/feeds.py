"""What an open session takes, and the refusal of anything else in the same words by every session."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.backend import Feeds, check_feeds
from toolchain.errors import BackendError


@dataclass(frozen=True)
class Input:
    """One input of a model.

    Attributes:
        name: what `run` must feed it as.
        dtype: of the elements.
        shape: sizes; a name where any size is taken, such as `batch`.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


def check_arrays(feeds: Feeds, inputs: Sequence[Input], source: str) -> None:
    """Refuse feeds that are not exactly `inputs`, in name, type and shape; `source` names the model in the message.

    Raises:
        BackendError: what was fed, and what is expected.
    """
    check_feeds(feeds, [taken.name for taken in inputs])
    for taken in inputs:
        array = feeds[taken.name]
        sizes = zip(taken.shape, array.shape, strict=False)
        fits = array.ndim == len(taken.shape) and all(isinstance(want, str) or want == has for want, has in sizes)
        if not fits or array.dtype != taken.dtype:
            raise BackendError(
                f"Input '{taken.name}' of {source} is {array.dtype}{list(array.shape)}: "
                f"feed {taken.dtype}{list(taken.shape)}."
            )


def closed(source: str) -> BackendError:
    """The answer to whoever uses a session after it was closed."""
    return BackendError(f"{source} is closed: open it again.")
