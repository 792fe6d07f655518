"""Histograms of |x| that never depend on how the values were cut into batches: the arithmetic, nothing else.

Bin widths are powers of two, and a histogram's width is a function of its largest |x| alone. When a larger value comes
the width doubles and neighbouring bins merge, which is exact: floor(floor(x / w) / 2) = floor(x / 2w). So the same
values give the same histogram bit for bit in any order and any batches, and memory is BINS integers per tensor.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolchain.errors import ModelError

BINS = 2048
BINS_EXPONENT = 11
LOWEST_EXPONENT = -120
"""Of a bin width: below it 1 / width would leave float32. It puts every |x| < 2^-120, and so 0, into the first bin."""
BLOCK = 1 << 16
"""Values counted at a time: the scratch (4 + 8 bytes each) stays in the CPU's second-level cache."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often |x| fell into each bin, and the exact extremes of x.

    Attributes:
        counts: (BINS,) int64; bin b holds the values with b * width <= |x| < (b + 1) * width.
        exponent: width = 2 ** exponent.
        minimum: least x, exact.
        maximum: largest x, exact.
    """

    counts: NDArray[np.int64]
    exponent: int
    minimum: float
    maximum: float

    @property
    def width(self) -> float:
        """Of one bin, in the unit of x."""
        return math.ldexp(1.0, self.exponent)

    @property
    def amax(self) -> float:
        """Largest |x|, exact."""
        return max(-self.minimum, self.maximum)

    @property
    def used(self) -> int:
        """Bins up to and with the one that holds amax: in (BINS / 2, BINS] unless amax is under 2^-110."""
        return bin_of(self.amax, self.exponent) + 1


def histogram_of(tensor: str, values: NDArray[np.floating]) -> Histogram:
    """The histogram of an array of any shape.

    Args:
        tensor: whose values these are, for the error.
        values: float16, float32 or float64, at least one.

    Raises:
        ModelError: no values, or one of them is NaN or infinite.
    """
    if values.size == 0:
        raise ModelError(f"Tensor '{tensor}' is empty: its range cannot be observed; leave it out of the placement.")
    flat = np.ravel(values)
    if flat.dtype == np.float16:
        # Exact, and float16 could not hold the bin numbers above 2048 / 2 apart from rounding.
        flat = flat.astype(np.float32)
    minimum, maximum = float(flat.min()), float(flat.max())
    if not (math.isfinite(minimum) and math.isfinite(maximum)):
        found = minimum if not math.isfinite(minimum) else maximum
        raise ModelError(
            f"Tensor '{tensor}' holds {found}: no range covers it; check the model in float32 on the same images."
        )
    exponent = exponent_of(max(-minimum, maximum))
    return Histogram(_counts(flat, exponent), exponent, minimum, maximum)


def merged(one: Histogram, other: Histogram) -> Histogram:
    """The histogram of both value sets together: commutative, associative and exact."""
    exponent = max(one.exponent, other.exponent)
    return Histogram(
        _widened(one, exponent) + _widened(other, exponent),
        exponent,
        min(one.minimum, other.minimum),
        max(one.maximum, other.maximum),
    )


def exponent_of(amax: float) -> int:
    """The exponent of the least power-of-two width with which amax falls into one of BINS bins."""
    # amax = f * 2^k with f in [1/2, 1), so amax / 2^(k - 11) is in [1024, 2048).
    return max(math.frexp(amax)[1] - BINS_EXPONENT, LOWEST_EXPONENT) if amax else LOWEST_EXPONENT


def bin_of(magnitude: float, exponent: int) -> int:
    """The bin that |x| = magnitude falls into when bins are 2 ** exponent wide."""
    return math.floor(math.ldexp(magnitude, -exponent))


def _counts(flat: NDArray[np.floating], exponent: int) -> NDArray[np.int64]:
    counts = np.zeros(BINS, np.int64)
    scaled = np.empty(min(BLOCK, flat.size), flat.dtype)
    bins = np.empty(scaled.size, np.intp)
    # A power of two in the values' own type: the product is exact wherever it is 1 or more.
    scale = flat.dtype.type(math.ldexp(1.0, -exponent))
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        size = block.size
        np.multiply(block, scale, out=scaled[:size])
        np.abs(scaled[:size], out=scaled[:size])
        np.copyto(bins[:size], scaled[:size], casting="unsafe")
        counts += np.bincount(bins[:size], minlength=BINS)
    return counts


def _widened(histogram: Histogram, exponent: int) -> NDArray[np.int64]:
    """The counts of `histogram` in bins 2 ** exponent wide, exponent >= its own."""
    # 2^11 bins become one after eleven doublings; more change nothing.
    together = 1 << min(exponent - histogram.exponent, BINS_EXPONENT)
    counts = np.zeros(BINS, np.int64)
    counts[: BINS // together] = histogram.counts.reshape(-1, together).sum(1)
    return counts
