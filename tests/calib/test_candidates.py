import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from calib.candidates import nearest


def test_the_farther_half_is_out_and_the_rest_is_kept_evenly():
    labels, distances = np.array([1, 0, 1, 0, 1, 0, 1, 0]), np.array([3.0, 5.0, 1.0, 4.0, 2.0, 9.0, 8.0, 7.0])
    # The nearer half: 2, 4 and 0 of class 1, then 3 of class 0. Two are wanted of class 1, one of class 0.
    assert nearest(labels, distances, np.array([1, 0, 1])).tolist() == [2, 3, 4]
    # Class 0 has no second one in that half: the third of class 1 stands in.
    assert nearest(labels, distances, np.array([1, 0, 0, 1])).tolist() == [0, 2, 3, 4]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(2, 4), st.integers(0, 99))
def test_what_is_kept_is_near_and_as_even_as_can_be(wanted, candidates, seed):
    random, wanted = np.random.default_rng(seed), np.array(wanted)
    labels, distances = random.permutation(np.repeat(wanted, candidates)), random.random(candidates * len(wanted))
    kept = nearest(labels, distances, wanted)
    assert len({*kept.tolist()}) == len(wanted)
    half = np.argsort(distances)[: len(labels) // 2]
    assert {*kept.tolist()} <= {*half.tolist()}
    for label in {*wanted.tolist()}:
        # As many as are wanted, or all that the nearer half has.
        assert (labels[kept] == label).sum() >= min((wanted == label).sum(), (labels[half] == label).sum())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_one_candidate_each_is_kept_as_it_is(wanted):
    assert nearest(np.array(wanted), np.zeros(len(wanted)), np.array(wanted)).tolist() == [*range(len(wanted))]
