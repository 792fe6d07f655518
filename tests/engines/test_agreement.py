"""What outputs of another engine are off by, worked out by hand."""

import math

import numpy as np
import pytest

from engines.agreement import agreements, output_problems

ITEMS = {"image": np.array([[1.0, 2.0], [3.0, 4.0]])}


def test_distances_are_over_all_feeds() -> None:
    reference = [{"y": np.array([3.0, 0.0])}, {"y": np.array([4.0, 0.0])}]
    off = [{"y": np.array([3.0, 0.0])}, {"y": np.array([4.0, 5.0])}]
    (found,) = agreements(off, reference).values()
    # Signal 9 + 16, noise 25; both vectors in one plane: 25 / (5 sqrt 50).
    assert found.max_abs == 5
    assert found.snr_db == pytest.approx(0)
    assert found.cosine == pytest.approx(1 / math.sqrt(2))
    assert found.as_dict()["equal"] is False


def test_equal_outputs_have_no_finite_snr_and_json_says_equal() -> None:
    found = agreements([ITEMS], [ITEMS])["image"]
    assert found.snr_db == math.inf
    assert found.as_dict() == {"equal": True, "max_abs": 0.0, "snr_db": None, "cosine": pytest.approx(1)}


def test_what_cannot_be_compared_is_left_out() -> None:
    zeros = {"same": np.zeros(2), "nan": np.full(2, np.nan), "shape": np.zeros(3), "mine": np.zeros(1)}
    found = agreements([zeros], [{"same": np.ones(2), "nan": np.ones(2), "shape": np.ones(2)}])
    assert list(found) == ["same"]
    # All is lost: noise equals signal, and a zero vector has no direction.
    assert (found["same"].snr_db, found["same"].cosine) == (0, 0)


def test_an_answer_that_does_not_depend_on_the_input_is_a_problem() -> None:
    same = [{"logits": np.array([[1.0, 2.0], [1.0, 2.0]])}]
    assert output_problems(same, [ITEMS]) == ("logits is the same for all 2 inputs",)
    # Nobody can tell where the inputs are all alike.
    assert output_problems(same, [{"image": np.ones((2, 2))}]) == ()
    assert output_problems([{"logits": np.array([[1.0, 2.0], [1.0, 2.5]])}], [ITEMS]) == ()
