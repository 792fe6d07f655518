"""Where the pixels of a training step come from."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from toolchain.data.pool import Pool
from toolchain.preprocessing import Preprocessing


class Wanted(NamedTuple):
    """Images to load for one pass.

    Attributes:
        rows: (n,) of the data set.
        flipped: (n,) bool, left-right.
        seeds: (n,), one for each view; a source that augments nothing ignores them.
    """

    rows: Tensor
    flipped: Tensor
    seeds: Tensor


def seeds(count: int, stream: np.random.Generator) -> Tensor:
    """(count,) int64, for the views of `Wanted`."""
    return torch.from_numpy(stream.integers(2**63 - 1, size=count))


class Source(Protocol):
    """Training images by row."""

    def __len__(self) -> int: ...

    def load(self, wanted: Sequence[Wanted]) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalized images (n, 3, S, S) and labels (n,) of each element of `wanted` in turn."""


class PoolSource:
    """Images held in memory, flipped and nothing more."""

    def __init__(self, pool: Pool, preprocessing: Preprocessing) -> None:
        self._pool = pool
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self._pool.labels)

    def load(self, wanted: Sequence[Wanted]) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalized images (n, 3, S, S) and labels (n,) of each element of `wanted` in turn."""
        for rows, flipped, _ in wanted:
            index, mirrored = rows.numpy(), flipped.numpy()
            images = self._pool.images[index]
            # As bytes, which are a quarter of what they become.
            images[mirrored] = images[mirrored, :, ::-1]
            yield torch.from_numpy(self._preprocessing.normalize(images)), torch.from_numpy(self._pool.labels[index])
