import math
from dataclasses import replace

import numpy as np
import pytest

from engines.bootstrap import Interval
from toolchain.boxes import box_from_map
from toolchain.card import ModelCard
from toolchain.comparison import Drop, accuracies, accuracy_from_dict, feeds_from_images
from toolchain.data.dataset import Sample
from toolchain.localizer import Localizer
from toolchain.preprocessing import Preprocessing

MAP = np.array([[1.0, 0.2], [0.0, 0.0]], np.float32)
CARD = ModelCard("none", ("a", "b"), Preprocessing(4, 4, (0.0,) * 3, (1.0,) * 3), 0.5)


class TwoImages:
    class_names = ("a", "b")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.full((4, 4, 3), 255 * index, np.uint8), index, ((0.0, 0.0, 4.0, 4.0),), str(index))


def localizer(gain: float) -> Localizer:
    """Says `b` for white images, more loudly with a larger gain."""

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        white = images.mean((1, 2, 3))
        maps = np.tile(MAP, (len(images), 1, 1))
        return gain * np.stack([1 - white, white], 1).astype(np.float32), maps

    return Localizer(predict, CARD)


def test_errors_are_distances_from_the_first() -> None:
    found = accuracies({"one": localizer(1), "two": localizer(1.1)}, TwoImages())
    assert found["one"].error is None
    assert found["one"].evaluation.top1 == 100
    # Centred logits of +-0.5 against +-0.55: the error is a tenth of the signal, 20 dB.
    assert found["two"].error.logits_snr_db == pytest.approx(20, abs=1e-4)
    assert found["two"].error.map_snr_db == math.inf
    assert found["two"].error.box_agreement == 100


def test_accuracy_survives_json_like_records() -> None:
    for found in accuracies({"one": localizer(1), "two": localizer(2)}, TwoImages()).values():
        assert accuracy_from_dict(found.as_dict()) == found


def test_feeds_rotate_through_all_images() -> None:
    images = np.arange(5, dtype=np.float32)[:, None, None, None]
    ones, twos = feeds_from_images(images, [1, 2])
    assert [feed["image"].ravel().tolist() for feed in ones] == [[0], [1], [2], [3]]
    assert [feed["image"].ravel().tolist() for feed in twos] == [[0, 1], [2, 3], [4, 0], [1, 2]]


class SixImages(TwoImages):
    """The two in turn, each with the box that the map tells."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Sample:
        box = box_from_map(MAP, 4, CARD.tau).box
        return replace(super().__getitem__(index % 2), boxes=(box,))


def test_a_drop_is_paired_image_by_image() -> None:
    def always_white(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, maps = localizer(1).predict(images)
        return np.tile(np.float32([0, 1]), (len(images), 1)), maps

    found = accuracies({"one": localizer(1), "two": Localizer(always_white, CARD)}, SixImages())
    assert found["one"].evaluation.top1_loc == 100
    assert found["one"].drops == {}
    # The boxes are the same; of the classes the three black ones are wrong.
    assert found["two"].drops == {"gt_known_loc": Drop(0, 0, 6), "top1_loc": Drop(lost=3, gained=0, images=6)}
    back = accuracies({"two": Localizer(always_white, CARD), "one": localizer(1)}, SixImages())
    assert back["one"].drops["top1_loc"] == Drop(lost=0, gained=3, images=6)


def test_the_interval_of_a_drop_counts_what_moved() -> None:
    # 8 lost, 2 gained of 100: 6 points, standard error sqrt(10 - 36 / 100) / 100.
    found = Drop(lost=8, gained=2, images=100).points
    error = 100 * math.sqrt(9.64) / 100
    assert found.value == 6
    assert (found.low, found.high) == (pytest.approx(6 - 1.96 * error), pytest.approx(6 + 1.96 * error))
    # Where no image moved there is no doubt.
    assert Drop(0, 0, 100).points == Interval(0.0, 0.0, 0.0)
