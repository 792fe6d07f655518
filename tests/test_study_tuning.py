"""Which learning rate an arm of the fine-tuning study gets."""

import pytest
from study.tuning import best_rate


@pytest.mark.parametrize(
    ("validated", "expected"),
    [
        ({1e-6: [96.0], 1e-5: [98.0], 1e-4: [97.0]}, 1e-5),
        # One image of 2,400 better for one seed, at chance for the other.
        ({1e-5: [96.71, 96.7], 1e-4: [96.75, 8.33]}, 1e-5),
        ({1e-6: [97.0, 95.0], 1e-5: [95.0, 97.0]}, 1e-6),
    ],
)
def test_an_arm_gets_the_rate_that_is_best_in_the_mean(validated: dict[float, list[float]], expected: float) -> None:
    assert best_rate(validated) == expected
