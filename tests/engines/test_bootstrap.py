"""Intervals against distributions whose error is known, and properties that hold for any samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.bootstrap import Interval, bootstrap, ratio_of_medians

QUICK = settings(max_examples=25, deadline=None)
ROUNDS = st.integers(2, 8).flatmap(
    lambda rounds: st.lists(st.lists(st.floats(0.1, 100), min_size=3, max_size=3), min_size=rounds, max_size=rounds)
)


def mean(samples):
    return samples.mean(-1)


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    # 400 rounds of one sample, standard deviation 1: the mean's standard error is 1 / 20, 95 % lie within 1.96 of it.
    samples = np.random.default_rng(1).standard_normal((400, 1))
    samples = (samples - samples.mean()) / samples.std()
    found = bootstrap(mean, samples)
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.low == pytest.approx(-1.96 / 20, rel=0.1)
    assert found.high == pytest.approx(1.96 / 20, rel=0.1)


def test_samples_of_a_round_count_once_where_they_are_alike() -> None:
    # A hundred copies of each sample know no more than the samples: resampling calls would give a tenth of the width.
    samples = np.random.default_rng(2).standard_normal((50, 1))
    alone, copied = bootstrap(mean, samples), bootstrap(mean, np.repeat(samples, 100, axis=1))
    assert (copied.low, copied.high) == (pytest.approx(alone.low), pytest.approx(alone.high))


def test_it_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        found = bootstrap(mean, rng.standard_normal((25, 2)))
        covered += found.low <= 0 <= found.high
    # 95 % are said. The percentile interval of 25 rounds is a little short of that; of 100 trials the error is 2.2.
    assert 86 <= covered <= 99


def test_a_drift_that_hits_both_alike_cancels() -> None:
    drift = np.linspace(1, 3, 10)[:, None] * np.ones((1, 4))
    found = ratio_of_medians((0.5 * drift).tolist(), drift.tolist())
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


@QUICK
@given(ROUNDS)
def test_nothing_differs_from_itself(samples) -> None:
    found = ratio_of_medians(samples, samples)
    assert found == Interval(1.0, 1.0, 1.0)
    assert not found.wholly_above(1)
    assert not found.wholly_below(1)


@QUICK
@given(ROUNDS, st.sampled_from([0.125, 0.5, 2.0, 16.0]))
def test_another_unit_of_one_side_scales_the_interval(samples, factor: float) -> None:
    base = [[sum(row) for _ in row] for row in samples]
    plain, scaled = ratio_of_medians(samples, base), ratio_of_medians((factor * np.array(samples)).tolist(), base)
    for mine, theirs in ((scaled.value, plain.value), (scaled.low, plain.low), (scaled.high, plain.high)):
        assert mine == pytest.approx(factor * theirs)


@QUICK
@given(ROUNDS)
def test_an_interval_lies_within_the_samples(samples) -> None:
    found = bootstrap(lambda some: np.percentile(some, 99, axis=-1), np.array(samples))
    assert np.min(samples) <= found.low <= found.high <= np.max(samples)


def test_the_same_seed_gives_the_same_interval() -> None:
    samples = np.random.default_rng(4).standard_normal((10, 3))
    assert bootstrap(mean, samples) == bootstrap(mean, samples)
    assert bootstrap(mean, samples) != bootstrap(mean, samples, seed=1)


def test_chunks_of_resamples_are_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def counted(samples):
        drawn.append(len(samples))
        return samples.mean(-1)

    monkeypatch.setattr("engines.bootstrap.CHUNK", 2100)
    bootstrap(counted, np.ones((10, 3)))
    # The figure itself, then 70 resamples of 30 samples at a time.
    assert drawn == [1, *[70] * 14, 20]


def test_one_round_says_nothing_of_noise() -> None:
    found = bootstrap(mean, np.array([[1.0, 3.0]]))
    assert found == Interval(2.0, None, None)
    assert found.range == "a single round, noise unknown"
    assert not found.wholly_above(0)
    assert not found.wholly_below(9)


def test_beyond_means_all_of_it() -> None:
    found = Interval(2.0, 1.5, 2.5)
    assert found.range == "1.50 to 2.50 at 95 %"
    assert (found.wholly_above(1.4), found.wholly_above(1.5), found.wholly_above(2)) == (True, False, False)
    assert (found.wholly_below(2.6), found.wholly_below(2.5)) == (True, False)
