"""From a histogram of |x| to amax, the largest magnitude that int8 will hold: policy-free arithmetic.

Quantization is symmetric, zero point 0, levels -127..127, step D = amax / 127:
    q(x) = D * clip(round(x / D), -127, 127).
Inside a bin, values are taken as evenly spread; so every error below is an integral, not a sample.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calib.histograms import Histogram
from toolchain.errors import UsageError

LEVELS = 127
"""Of int8 on each side of zero."""
ENTROPY_LEVELS = 128
AUTO_FACTOR = 4.0
"""How much more error than the least `auto` takes to clip less: 6 dB, one bit.

The error of a tensor counts all its values alike, but in a transformer a few tokens with huge values steer the
attention of all others. Measured on a pretrained ViT-S (SNR of logits and map): factor 1.01: 9.8 and 9.4 dB;
2: 12.4 and 10.4 dB; 4 and 10: 17.5 and 13.3 dB. On the bundled localizer 28.6 and 21.4, 29.9 and 23.1, 30.5 and 23.4.
"""
AUTO = "auto"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Threshold:
    """The amax of one tensor and how it was found.

    Attributes:
        amax: in the unit of x; 0 where every value was 0.
        method: the one that gave it; never `auto`.
        error: mean squared quantization error over mean square of x, both under the histogram; 0 where x is 0.
    """

    amax: float
    method: str
    error: float


def threshold_of(histogram: Histogram, method: str) -> Threshold:
    """The threshold that `method` (`auto` or a key of METHODS) gives.

    `auto` measures every method's error under the histogram. `mse` has the least by construction; of the methods with
    at most AUTO_FACTOR times the least, `auto` takes the one with the largest amax.

    Raises:
        UsageError: no such method.
    """
    if method == AUTO:
        candidates = [_measured(histogram, name) for name in METHODS]
        bound = min(c.error for c in candidates) * AUTO_FACTOR
        return max((c for c in candidates if c.error <= bound), key=lambda c: c.amax)
    if method not in METHODS:
        raise UsageError(f"Calibration method '{method}' does not exist: choose {', '.join([AUTO, *METHODS])}.")
    return _measured(histogram, method)


def maximum(histogram: Histogram) -> float:
    """Largest |x|: nothing observed is clipped."""
    return histogram.amax


def percentile(histogram: Histogram, percent: float = 99.99) -> float:
    """The upper edge of the first bin up to which at least `percent` of the values lie; at most the largest |x|."""
    cumulated = np.cumsum(histogram.counts)
    reached = int(np.searchsorted(cumulated / cumulated[-1], percent / 100))
    return _upper_edge(histogram, reached)


def least_squares(histogram: Histogram) -> float:
    """The bin edge, or the largest |x|, with the least squared quantization error; of equal ones the largest."""
    used = histogram.used
    if histogram.amax == 0:
        return 0.0
    # Edges in bins; the last one is replaced by the exact largest |x|, so that `max` is among the candidates.
    candidates = np.arange(1, used + 1, dtype=np.float64)
    candidates[-1] = histogram.amax / histogram.width
    errors = squared_errors(histogram.counts[:used], candidates)
    best = used - 1 - int(np.argmin(errors[::-1]))
    return float(candidates[best]) * histogram.width


def squared_errors(counts: NDArray[np.int64], amaxes: Floats) -> Floats:
    """Sum over all values of (x - q(x))^2 for each amax; the unit is the bin width, x evenly spread in its bin.

    With F(x) the integral of (u - q(u))^2 from 0 to x, a bin of c values on [b, b + 1] adds c (F(b + 1) - F(b)), and
    for k = min(round(x / D), 127): F(x) = k D^3 / 12 + (x - k D)^3 / 3, that is k whole teeth of the saw and the part
    of one that is left; beyond amax the last term is the clipping error, and k stays 127.

    Args:
        counts: (n,) values per bin.
        amaxes: (m,) > 0, in bins.

    Returns:
        (m,) in bins squared, times values.
    """
    edges = np.arange(len(counts) + 1, dtype=np.float64)
    # c_b (F(b+1) - F(b)) summed by parts: each F(edge) is weighed by the fall of the counts across that edge.
    weights = -np.diff(counts.astype(np.float64), prepend=0.0, append=0.0)
    errors = np.empty(len(amaxes))
    for at in range(0, len(amaxes), 128):
        step = amaxes[at : at + 128, None] / LEVELS
        level = np.minimum(np.rint(edges / step), LEVELS)
        rest = edges - level * step
        errors[at : at + 128] = (level * step**3 / 12 + rest * rest * rest / 3) @ weights
    return errors


def relative_error(histogram: Histogram, amax: float) -> float:
    """Mean squared quantization error over mean square of x, both under the histogram; 0 where every x is 0."""
    if histogram.amax == 0:
        return 0.0
    used = histogram.used
    counts = histogram.counts[:used]
    edges = np.arange(used + 1, dtype=np.float64)
    power = np.diff(edges**3 / 3) @ counts
    return float(squared_errors(counts, np.array([amax / histogram.width]))[0] / power)


def entropy(histogram: Histogram) -> float:
    """The threshold of least Kullback-Leibler divergence (NVIDIA, "8-bit inference with TensorRT", GTC 2017).

    For i in 128..2048: P = bins[0..i) with the mass beyond added to its last bin; Q = bins[0..i) merged into 128
    levels (bin b into level floor(128 b / i)), each level spread evenly over the bins where P is not 0. The i with the
    least KL(P || Q) wins, the smallest of equal ones; amax is its edge i * width, at most the largest |x|.

    A Q that is 0 where P is not diverges and loses. If all do, the largest |x| is returned.
    """
    sizes = np.arange(ENTROPY_LEVELS, len(histogram.counts) + 1)
    divergences = _divergences(histogram.counts, sizes)
    best = int(np.argmin(divergences))
    if not np.isfinite(divergences[best]):
        return histogram.amax
    return _upper_edge(histogram, int(sizes[best]) - 1)


def _divergences(counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Floats:
    """KL(P || Q) for each number of bins kept.

    Q is constant on a level's support, so the sum over bins collapses to one over the 128 levels, and all of those are
    differences of running sums: KL = (sum p log p - sum_levels P_level log(q_level)) / N + log(sum q / N).
    """
    bins = counts.astype(np.float64)
    mass = np.concatenate([[0.0], np.cumsum(bins)])
    support = np.concatenate([[0.0], np.cumsum(bins > 0)])
    plogp = np.concatenate([[0.0], np.cumsum(_xlogx(bins))])
    total = mass[-1]
    last = bins[sizes - 1]
    outliers = total - mass[sizes]

    # Bin b belongs to level floor(128 b / i): level l starts at ceil(l i / 128).
    starts = -(-np.arange(ENTROPY_LEVELS + 1) * sizes[:, None] // ENTROPY_LEVELS)
    q_mass = np.diff(mass[starts], axis=1)
    p_mass = q_mass.copy()
    p_mass[:, -1] += outliers
    bins_held = np.diff(support[starts], axis=1)
    # The outliers make the last bin part of P's support even where it was empty.
    bins_held[:, -1] += (last == 0) & (outliers > 0)

    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(q_mass / bins_held)
        cross = np.where(p_mass > 0, p_mass * log_q, 0.0).sum(1)
        log_scale = np.log(mass[sizes] / total)
        p_entropy = plogp[sizes] - _xlogx(last) + _xlogx(last + outliers)
        divergence = (p_entropy - cross) / total + log_scale
    return np.where(np.isfinite(divergence), divergence, np.inf)


def _xlogx(x: Floats) -> Floats:
    return np.asarray(x * np.log(np.where(x > 0, x, 1.0)))


def _upper_edge(histogram: Histogram, index: int) -> float:
    return min((index + 1) * histogram.width, histogram.amax)


def _measured(histogram: Histogram, method: str) -> Threshold:
    amax = METHODS[method](histogram)
    return Threshold(amax, method, relative_error(histogram, amax))


METHODS: Mapping[str, Callable[[Histogram], float]] = {
    "max": maximum,
    "percentile": percentile,
    "percentile-99.999": lambda histogram: percentile(histogram, 99.999),
    "mse": least_squares,
    "entropy": entropy,
}
"""Name on the command line -> function. Order breaks ties of `auto`."""
