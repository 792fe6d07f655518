"""What float16 cannot hold, counted by hand and against numpy's own conversion."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib.float16 import Magnitudes, magnitudes_of, merged

FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=30)


def array(values):
    return np.array(values, np.float32)


def test_by_hand():
    found = magnitudes_of(array([0, 1, -70000, 2**-14, 2**-15, -(2**-24), 2**-25]))
    assert found == Magnitudes(amax=70000, nonzero=6, subnormal=3, vanishing=1)
    assert (found.overflows, found.subnormal_share, found.vanishing_share) == (True, 1 / 2, 1 / 6)


@pytest.mark.parametrize(("value", "overflows"), [(65504, False), (65505, True), (np.inf, True), (np.nan, True)])
def test_overflow(value, overflows):
    assert magnitudes_of(array([1, value])).overflows is overflows
    assert merged(magnitudes_of(array([value])), magnitudes_of(array([1]))).overflows is overflows


@pytest.mark.parametrize("values", [[], [0.0, -0.0]])
def test_nothing_but_zeros_loses_nothing(values):
    found = magnitudes_of(array(values))
    assert found == Magnitudes(0, 0, 0, 0)
    assert (found.overflows, found.subnormal_share, found.vanishing_share) == (False, 0, 0)


@given(FLOATS)
def test_what_is_not_counted_is_rounded_and_nothing_worse(values):
    found, x = magnitudes_of(array(values)), array(values)
    normal = x[(np.abs(x) >= 2**-14) & (np.abs(x) <= 65504)].astype(np.float64)
    assert np.all(np.abs(normal.astype(np.float16) - normal) <= np.abs(normal) * 2**-11)
    assert found.nonzero - found.subnormal == np.count_nonzero(np.abs(x) >= 2**-14)
    with np.errstate(over="ignore"):
        assert found.vanishing >= np.count_nonzero(x) - np.count_nonzero(x.astype(np.float16))


@given(FLOATS, FLOATS)
def test_merging_is_seeing_all_at_once(one, other):
    assert merged(magnitudes_of(array(one)), magnitudes_of(array(other))) == magnitudes_of(array(one + other))
