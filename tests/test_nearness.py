"""What `benchmarks/privacy.py` makes of distances and of class centers, on data whose answer is known."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks.nearness import nearness, wilson


def distances(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.linalg.norm(images[:, None] - others[None], axis=2).astype(np.float32)


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images to ask about, and two sets of others, all of one distribution."""
    random = np.random.default_rng(0)
    return random.standard_normal((200, 8)), random.standard_normal((300, 8)), random.standard_normal((300, 8))


def test_by_hand() -> None:
    first, second = np.float32([[1, 5], [4, 2], [3, 9]]), np.float32([[2, 4], [1, 6], [7, 8]])
    found = nearness(first, second)
    assert found.images == 3
    assert found.share == pytest.approx(2 / 3)
    # To the nearest of the first set: 1, 2, 3; of the second: 2, 1, 7.
    assert (found.first.median, found.second.median) == (2, 2)
    assert found.excess[0] == 1


def test_what_no_set_stands_behind_is_as_near_to_either(drawn) -> None:
    images, first, second = drawn
    found = nearness(distances(images, first), distances(images, second))
    assert found.chance[0] <= found.share <= found.chance[1]
    assert found.chance[0] < 0.5 < found.chance[1]
    assert found.p > 0.01


def test_copies_of_the_first_set_give_themselves_away(drawn) -> None:
    images, first, second = drawn
    copies = first[:200] + 0.1 * images
    found = nearness(distances(copies, first), distances(copies, second))
    assert found.share > 0.99
    assert found.p < 0.001
    assert found.excess[1] > 0
    assert nearness(distances(copies, second), distances(copies, first)).p > 0.99


def test_a_few_copies_among_many_images_are_found(drawn) -> None:
    images, first, second = drawn
    images[:80] = first[:80]
    assert nearness(distances(images, first), distances(images, second)).p < 0.01


def test_one_nearest_image_of_all_is_one_observation(drawn) -> None:
    images, first, second = drawn
    images[:], first[0] = 0, 0
    found = nearness(distances(images, first), distances(images, second))
    # Every image is nearer to the first set, and a coin would have said so.
    assert found.share == 1
    assert found.chance == (0, 1)
    assert 0.4 < found.p < 0.6


def test_sets_of_another_size_are_refused(drawn) -> None:
    images, first, second = drawn
    with pytest.raises(ValueError, match="sets of 300 and 299 images"):
        nearness(distances(images, first), distances(images, second[1:]))


def test_wilson_by_hand() -> None:
    # 0 of 10: from 0 to z^2 / (10 + z^2).
    assert wilson(0.0, 10) == (pytest.approx(0, abs=1e-12), pytest.approx(3.841459 / 13.841459, rel=1e-5))
    low, high = wilson(0.5, 100)
    assert low + high == pytest.approx(1)


def test_members_of_a_center_are_told_from_others_where_it_is_of_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    membership = importlib.import_module("membership").membership
    random = np.random.default_rng(0)

    def auc(images: int, channels: int) -> float:
        """Of images of two classes around centers of so many."""
        labels = np.repeat([0, 1], images)
        members = random.standard_normal((2 * images, channels)) + 3 * labels[:, None]
        other_labels = np.repeat([0, 1], 400)
        others = random.standard_normal((800, channels)) + 3 * other_labels[:, None]
        centers = {label: members[labels == label].mean(0) for label in (0, 1)}
        found = membership((members, labels), (others, other_labels), centers)
        assert (found.members, found.others) == (2 * images, 400)
        assert found.interval[0] <= found.auc <= found.interval[1]
        return found.auc

    # The score's mean moves by sqrt(channels / images) of its deviation: by 4 and by 0.3.
    assert auc(8, 128) > 0.95
    assert 0.5 < auc(400, 36) < 0.7
