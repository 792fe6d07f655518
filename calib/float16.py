"""What float16 cannot hold of an array: magnitudes beyond its largest number, under its least normal, under its least.

Arithmetic alone: whoever runs a model hands in one array after the other.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST = 65504.0
LEAST_NORMAL = 2.0**-14
"""Under it float16 loses a bit of precision with every halving, and some units flush to 0."""
LEAST = 2.0**-24
"""The least number above 0: what is under it becomes 0, or this."""


@dataclass(frozen=True)
class Magnitudes:
    """Of the values of one tensor.

    Attributes:
        amax: largest |x|; NaN where a value is NaN.
        nonzero: how many values are not 0.
        subnormal: how many of these are under `LEAST_NORMAL`.
        vanishing: how many of these are under `LEAST`; they count as subnormal, too.
    """

    amax: float
    nonzero: int
    subnormal: int
    vanishing: int

    @property
    def overflows(self) -> bool:
        """float16 cannot hold the largest; NaN it cannot hold either."""
        return not self.amax <= LARGEST

    @property
    def subnormal_share(self) -> float:
        """Of the values that are not 0."""
        return self.subnormal / self.nonzero if self.nonzero else 0.0

    @property
    def vanishing_share(self) -> float:
        """Of the values that are not 0."""
        return self.vanishing / self.nonzero if self.nonzero else 0.0


def magnitudes_of(values: NDArray[np.generic]) -> Magnitudes:
    """Of an array of any shape, float32 or float64; an empty one has no magnitude but 0."""
    magnitudes = np.abs(values)
    nonzero = int(np.count_nonzero(magnitudes))
    zeros = magnitudes.size - nonzero
    return Magnitudes(
        amax=float(magnitudes.max(initial=0)),
        nonzero=nonzero,
        subnormal=int((magnitudes < LEAST_NORMAL).sum()) - zeros,
        vanishing=int((magnitudes < LEAST).sum()) - zeros,
    )


def merged(one: Magnitudes, other: Magnitudes) -> Magnitudes:
    """Of both value sets together."""
    return Magnitudes(
        amax=float(np.maximum(one.amax, other.amax)),
        nonzero=one.nonzero + other.nonzero,
        subnormal=one.subnormal + other.subnormal,
        vanishing=one.vanishing + other.vanishing,
    )
