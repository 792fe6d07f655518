"""What an open session takes, and the refusal of anything else in the same words by every session."""

from collections.abc import Sequence

import numpy as np

from engines.backend import Feeds, Input, check_feeds
from toolchain.errors import BackendError, UsageError


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


def random_feeds(inputs: Sequence[Input], batch: int, seed: int, source: str) -> Feeds:
    """Arrays for inputs of which nothing but type and shape is known: normal floats, 0 or 1 in any other type.

    Args:
        inputs: of the session.
        batch: for the first size of each, where any is taken.
        seed: of the numbers.
        source: names the model in messages.

    Raises:
        BackendError: nothing says what the session takes.
        UsageError: another batch is taken, or a size other than the batch is open.
    """
    if not inputs:
        raise BackendError(f"Nothing says what {source} takes: benchmark a localizer, or a file with recorded shapes.")
    rng = np.random.default_rng(seed)
    feeds = {}
    for taken in inputs:
        first, *others = taken.shape or (batch,)
        if first != batch and not isinstance(first, str):
            raise UsageError(f"Input '{taken.name}' of {source} is {list(taken.shape)}: give --batch {first}.")
        sizes = [size for size in others if isinstance(size, int)]
        if len(sizes) < len(others):
            raise UsageError(
                f"Input '{taken.name}' of {source} is {list(taken.shape)}: export it with its batch alone dynamic."
            )
        shape = (batch, *sizes) if taken.shape else ()
        values = rng.standard_normal(shape) if taken.dtype.kind == "f" else rng.integers(0, 2, shape)
        feeds[taken.name] = values.astype(taken.dtype)
    return feeds


def closed(source: str) -> BackendError:
    """The answer to whoever uses a session after it was closed."""
    return BackendError(f"{source} is closed: open it again.")
