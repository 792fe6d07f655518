"""Thresholds against hand-derived values and independent brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.histograms import BINS, Histogram, histogram_of
from calib.thresholds import (
    METHODS,
    entropy,
    least_squares,
    maximum,
    percentile,
    relative_error,
    squared_errors,
    threshold_of,
)
from toolchain.errors import UsageError


def in_bins(counts: dict[int, int]) -> Histogram:
    """Bins of width 1; the largest value stands at the upper end of the last bin filled."""
    array = np.zeros(BINS, np.int64)
    for at, count in counts.items():
        array[at] = count
    top = float(np.nextafter(max(counts) + 1, 0))
    return Histogram(array, 0, -top, 0.0)


def drawn(seed: int, kind: str) -> Histogram:
    rng = np.random.default_rng(seed)
    values = {
        "normal": lambda: rng.standard_normal(20_000),
        "outliers": lambda: np.concatenate([rng.standard_normal(20_000), 30 * rng.standard_normal(4)]),
        "gelu": lambda: np.maximum(rng.standard_normal(20_000), 0) ** 2,
        "uniform": lambda: rng.uniform(-1, 1, 20_000),
    }[kind]()
    return histogram_of(kind, values.astype(np.float32))


KINDS = ["normal", "outliers", "gelu", "uniform"]


def test_max_is_exact():
    assert maximum(histogram_of("t", np.array([-3.3, 1.0]))) == 3.3


def test_percentile_by_hand():
    # 9,999 of 10,000 values are reached with bin 99, whose upper edge is 100; 99.999 % needs the last value.
    histogram = in_bins({10: 5000, 99: 4999, 2000: 1})
    assert percentile(histogram, 99.99) == 100.0
    assert percentile(histogram, 50) == 11.0
    assert percentile(histogram, 99.999) == histogram.amax


def test_squared_error_by_hand():
    # amax 127 in bins: step 1, so within each of the 127 bins two half teeth, 1/12 in all.
    assert squared_errors(np.full(127, 3), np.array([127.0]))[0] == pytest.approx(127 * 3 / 12)
    # One value in bin 200, clipped to 127: the integral of (x - 127)^2 from 200 to 201.
    counts = np.zeros(201, np.int64)
    counts[200] = 1
    assert squared_errors(counts, np.array([127.0]))[0] == pytest.approx((74**3 - 73**3) / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_squared_error_is_that_of_the_quantizer(kind):
    histogram = drawn(1, kind)
    counts = histogram.counts[: histogram.used]
    amaxes = np.array([3.7, 130.0, 700.3, float(histogram.used)])
    # Brute force: 400 evenly spread values in each bin, quantized one by one.
    inside = (np.arange(400) + 0.5) / 400
    values = np.arange(histogram.used)[:, None] + inside
    expected = []
    for amax in amaxes:
        step = amax / 127
        quantized = np.clip(np.rint(values / step), -127, 127) * step
        expected.append((((values - quantized) ** 2).mean(1) * counts).sum())
    np.testing.assert_allclose(squared_errors(counts, amaxes), expected, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_mse_beats_every_other_edge(kind):
    histogram = drawn(2, kind)
    best = least_squares(histogram)
    rng = np.random.default_rng(0)
    sample = np.repeat(np.arange(BINS), histogram.counts) + rng.uniform(size=histogram.counts.sum())
    sample *= histogram.width

    def measured(amax: float) -> float:
        step = amax / 127
        return float(((sample - np.clip(np.rint(sample / step), 0, 127) * step) ** 2).mean())

    others = [i * histogram.width for i in range(64, histogram.used, 23)] + [histogram.amax]
    assert measured(best) <= min(map(measured, others)) * 1.02


def brute_force_entropy(counts: np.ndarray) -> tuple[int, float]:
    """KL of every candidate, straight from the definition, one bin at a time."""
    best = (0, math.inf)
    for size in range(128, len(counts) + 1):
        p = [float(c) for c in counts[:size]]
        p[-1] += float(sum(counts[size:]))
        levels: list[list[int]] = [[] for _ in range(128)]
        for at in range(size):
            levels[at * 128 // size].append(at)
        q = [0.0] * size
        for members in levels:
            held = [at for at in members if p[at] > 0]
            for at in held:
                q[at] = float(sum(counts[m] for m in members)) / len(held)
        p_sum, q_sum = sum(p), sum(q)
        divergence = 0.0
        for a, b in zip(p, q, strict=True):
            if a > 0:
                divergence += math.inf if b == 0 else a / p_sum * math.log(a / p_sum / (b / q_sum))
        if divergence < best[1] - 1e-12:
            best = (size, divergence)
    return best


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_is_the_definition(kind):
    # Every 8th bin stands for 8: brute force over 2048 bins would take minutes.
    counts = drawn(3, kind).counts.reshape(-1, 8).sum(1)
    size, _ = brute_force_entropy(counts)
    top = int(np.flatnonzero(counts)[-1]) + 1
    histogram = Histogram(counts, 0, 0.0, float(np.nextafter(top, 0)))
    assert entropy(histogram) == min(float(size), histogram.amax)


def test_entropy_drops_a_lone_outlier():
    # 128 bins are one level each: Q = P but for the one value beyond. Any wider Q would even out 1000 and 3000.
    histogram = in_bins({**{at: 1000 + 2000 * (at % 2) for at in range(128)}, 2047: 1})
    assert entropy(histogram) == 128.0


def test_entropy_of_a_single_far_value_is_max():
    # Every candidate short of it leaves Q empty where P holds the outlier.
    histogram = in_bins({1500: 10})
    assert entropy(histogram) == histogram.amax


@pytest.mark.parametrize("kind", KINDS)
def test_auto_clips_least_of_what_costs_a_bit_at_most(kind):
    histogram = drawn(4, kind)
    chosen = threshold_of(histogram, "auto")
    rivals = {name: threshold_of(histogram, name) for name in METHODS}
    least = min(r.error for r in rivals.values())
    assert chosen == rivals[chosen.method]
    assert chosen.error <= least * 4
    assert all(r.amax <= chosen.amax for r in rivals.values() if r.error <= least * 4)


def test_auto_keeps_the_whole_range_where_clipping_gains_nothing():
    assert threshold_of(drawn(5, "uniform"), "auto").method == "max"


def test_error_is_relative():
    # Values spread over [0, 127 k): error k^2 / 12, mean square (127 k)^2 / 3, whatever k is.
    histogram = in_bins(dict.fromkeys(range(1270), 1))
    assert relative_error(histogram, 1270.0) == pytest.approx(1 / (4 * 127**2))


@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_all_zero_has_amax_zero(method):
    threshold = threshold_of(histogram_of("t", np.zeros(5)), method)
    assert (threshold.amax, threshold.error) == (0.0, 0.0)


@pytest.mark.parametrize("method", ["auto", *METHODS])
@settings(deadline=None, max_examples=20)
@given(scale=st.floats(1e-20, 1e20), seed=st.integers(0, 9))
def test_thresholds_are_positive_and_at_most_max(method, scale, seed):
    values = np.random.default_rng(seed).standard_normal(100).astype(np.float32) * np.float32(scale)
    histogram = histogram_of("t", values)
    assert 0 < threshold_of(histogram, method).amax <= histogram.amax


def test_unknown_method():
    with pytest.raises(UsageError, match=r"'kl' does not exist: choose auto, max"):
        threshold_of(drawn(0, "normal"), "kl")
