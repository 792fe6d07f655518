"""Exact arithmetic of the growing histogram."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from calib.histograms import BINS, LOWEST_EXPONENT, Histogram, exponent_of, histogram_of, merged
from toolchain.errors import ModelError

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def as_tuple(h: Histogram) -> tuple[object, ...]:
    return (*h.counts.tolist(), h.exponent, h.minimum, h.maximum)


def test_known_bins():
    # amax 3 = 0.75 * 2^2, so the width is 2^(2 - 11) = 1/512: bin of x is 512 |x|.
    h = histogram_of("t", np.array([[0.0, -3.0], [1.0, 2.0**-9]], np.float32))
    assert h.width == 1 / 512
    assert {int(b): int(h.counts[b]) for b in np.flatnonzero(h.counts)} == {0: 1, 1: 1, 512: 1, 1536: 1}
    assert (h.minimum, h.maximum, h.amax, h.used) == (-3.0, 1.0, 3.0, 1537)


def test_a_larger_value_merges_pairs():
    small = histogram_of("t", np.array([1.0, 1.5], np.float32))  # width 1/1024: bins 1024, 1536
    large = histogram_of("t", np.array([4.0], np.float32))  # width 1/256: bin 1024
    both = merged(small, large)
    assert both.width == 1 / 256
    assert {int(b): int(both.counts[b]) for b in np.flatnonzero(both.counts)} == {256: 1, 384: 1, 1024: 1}


@pytest.mark.parametrize("amax", [1.0, np.nextafter(np.float32(2), np.float32(1)), 2.0, 3.4e38, 1e-30, 2.0**-109])
def test_amax_falls_into_the_upper_half(amax):
    h = histogram_of("t", np.array([amax, -amax / 2], np.float32))
    assert BINS // 2 < h.used <= BINS
    assert h.counts[h.used - 1] == 1
    assert h.counts.sum() == 2


def test_zeros_have_the_lowest_width_and_leave_no_trace_after_merging():
    zeros = histogram_of("t", np.zeros(7, np.float32))
    assert (zeros.exponent, zeros.amax, zeros.counts[0]) == (LOWEST_EXPONENT, 0.0, 7)
    both = merged(zeros, histogram_of("t", np.array([5.0], np.float32)))
    assert both.exponent == exponent_of(5.0)
    assert (both.counts[0], both.counts.sum()) == (7, 8)


@settings(deadline=None)
@given(npst.arrays(np.float32, st.integers(1, 60), elements=FINITE), st.randoms(), st.integers(1, 12))
def test_independent_of_order_and_batches(values, random, pieces):
    whole = as_tuple(histogram_of("t", values))
    shuffled = values[random.sample(range(len(values)), len(values))]
    parts = [histogram_of("t", p) for p in np.array_split(shuffled, pieces) if p.size]
    random.shuffle(parts)
    while len(parts) > 1:  # any tree of merges, not only a running one
        parts.append(merged(parts.pop(0), parts.pop(random.randrange(len(parts)))))
    assert as_tuple(parts[0]) == whole


@given(npst.arrays(np.float32, st.integers(1, 60), elements=FINITE))
def test_bins_are_those_of_exact_arithmetic(values):
    h = histogram_of("t", values)
    expected = np.zeros(BINS, np.int64)
    for value in values.tolist():
        expected[math.floor(math.ldexp(abs(value), -h.exponent))] += 1
    np.testing.assert_array_equal(h.counts, expected)


def test_more_values_than_one_block():
    values = np.random.default_rng(0).standard_normal((3, 70_001)).astype(np.float32)
    assert as_tuple(histogram_of("t", values)) == as_tuple(
        merged(histogram_of("t", values[:1]), histogram_of("t", values[1:]))
    )


def test_float16_counts_like_the_same_numbers_in_float32():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float16)
    assert as_tuple(histogram_of("t", values)) == as_tuple(histogram_of("t", values.astype(np.float32)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_is_an_error_that_names_the_tensor(bad):
    with pytest.raises(ModelError, match=rf"'blocks/0'.*{bad}"):
        histogram_of("blocks/0", np.array([1.0, bad, 2.0], np.float32))


def test_nothing_observed_is_an_error():
    with pytest.raises(ModelError, match="'t' is empty"):
        histogram_of("t", np.empty((0, 3), np.float32))
