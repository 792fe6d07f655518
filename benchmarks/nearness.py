"""Which of two sets of images another image is nearer to, and how often chance alone says the first.

The two sets are of the same size. If nothing tells them apart for the images that are asked about, the nearest of all
is in the first for half of them, and any relabelling of the two sets is as good as the true one.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
RELABELLINGS = 5000
Z = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Distances:
    """Of some images to their nearest one.

    Attributes:
        median: of them.
        percentile_1: the first percentile.
    """

    median: float
    percentile_1: float


@dataclass(frozen=True)
class Nearness:
    """Which of two sets some images are nearer to.

    Attributes:
        images: that were asked about.
        first: their distances to the nearest of the first set.
        second: likewise.
        excess: per image, distance to the second set less distance to the first: median, 2.5 and 97.5 %.
        share: of the images that are nearer to the first set.
        interval: of it, 95 %, Wilson's for a binomial share.
        chance: where it lies in 95 % of the relabellings of the two sets.
        p: share of the relabellings that give so large a share, or a larger one.
    """

    images: int
    first: Distances
    second: Distances
    excess: tuple[float, float, float]
    share: float
    interval: tuple[float, float]
    chance: tuple[float, float]
    p: float

    def as_dict(self) -> dict[str, Any]:
        """For a record."""
        return asdict(self)


def nearness(first: Vectors, second: Vectors, seed: int = 0) -> Nearness:
    """Compare distances to two sets of the same size.

    Args:
        first: from each image to each of the first set, (N, M).
        second: likewise, (N, M).
        seed: of the relabellings.

    Raises:
        ValueError: the sets are not of the same size.
    """
    if first.shape != second.shape:
        raise ValueError(f"sets of {first.shape[1]} and {second.shape[1]} images: compare equal ones.")
    near, far = first.min(1), second.min(1)
    share = float((near < far).mean())
    drawn = _relabelled(np.concatenate([first, second], axis=1).argmin(1), first.shape[1], seed)
    low, median, high = (float(value) for value in np.percentile(far - near, (2.5, 50, 97.5)))
    return Nearness(
        images=len(near),
        first=_distances(near),
        second=_distances(far),
        excess=(median, low, high),
        share=share,
        interval=wilson(share, len(near)),
        chance=(float(np.percentile(drawn, 2.5)), float(np.percentile(drawn, 97.5))),
        p=float((1 + (drawn >= share).sum()) / (1 + len(drawn))),
    )


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` (Wilson 1927)."""
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return centre - half, centre + half


def _distances(values: Vectors) -> Distances:
    return Distances(float(np.median(values)), float(np.percentile(values, 1)))


def _relabelled(nearest: NDArray[np.intp], size: int, seed: int) -> NDArray[np.float64]:
    """Share of the images whose nearest is in the first set, in each of many random halvings of all.

    Several images often have the same nearest one, and then move together: this is what a binomial interval overlooks.
    """
    times = np.bincount(nearest, minlength=2 * size)
    asked = np.flatnonzero(times)
    random = np.random.default_rng(seed)
    drawn = np.empty(RELABELLINGS)
    for index in range(RELABELLINGS):
        drawn[index] = times[asked[random.permutation(2 * size)[: len(asked)] < size]].sum() / len(nearest)
    return drawn
