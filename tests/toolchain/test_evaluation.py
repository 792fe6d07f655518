"""Four images on an 8 x 8 map, as large as the input, so that every metric can be counted on the fingers."""

from dataclasses import replace

import numpy as np
import pytest

from engines.agreement import snr_db
from toolchain.data.dataset import Sample
from toolchain.errors import DataError, ModelError
from toolchain.evaluation import Outputs, batches, choose_tau, collect_outputs, evaluate, output_error
from toolchain.preprocessing import Preprocessing

PLAIN = Preprocessing(8, 8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def map_of(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    map_ = np.zeros((8, 8), np.float32)
    map_[y0:y1, x0:x1] = 1
    return map_


FOUR = Outputs(
    # The true class is 0 throughout. It comes first, first, second, last of six.
    logits=np.array(
        [[9, 1, 2, 3, 4, 5], [9, 1, 2, 3, 4, 5], [8, 9, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]],
        np.float32,
    ),
    # Right to the pixel; elsewhere; three quarters of the box; nothing known, and the whole image is right.
    maps=np.stack([map_of(1, 1, 5, 5), map_of(5, 5, 8, 8), map_of(1, 1, 5, 4), np.zeros((8, 8), np.float32)]),
    labels=np.zeros(4, np.int64),
    boxes=((1, 1, 5, 5), (0, 0, 4, 4), (1, 1, 5, 5), (0, 0, 8, 8)),
    image_size=8,
)


def test_metrics_by_hand():
    result = evaluate(FOUR, tau=0.5)
    assert (result.images, result.tau, result.protocol) == (4, 0.5, "lctr")
    assert (result.top1, result.top5) == (50, 75)
    assert result.gt_known_loc == 75
    assert (result.top1_loc, result.top5_loc) == (25, 50)
    assert result.constant_maps == 1


def test_a_box_of_iou_one_half_is_right():
    half = replace(FOUR, boxes=((1, 1, 5, 9), (1, 1, 5, 10), (1, 1, 5, 7), (0, 0, 8, 17)))
    # 16/32 is right, 0 is not, 12/24 is right, 64/136 is not.
    assert evaluate(half, tau=0.5).gt_known_loc == 50


def test_tau_is_the_middle_of_the_best_ones():
    # A plateau at one half around the truth: boxes are right from tau 0.50 (level 127, strictly) to the end at 0.99.
    steps = np.full((8, 8), 0, np.float32)
    steps[1:7, 1:7] = 0.5
    steps[3:6, 3:6] = 1
    outputs = Outputs(np.zeros((1, 1), np.float32), steps[None], np.zeros(1, np.int64), ((3, 3, 6, 6),), 8)
    assert choose_tau(outputs) == 0.75


def test_snr_by_hand():
    assert snr_db(np.float32([3, 3]), np.float32([3, 4])) == pytest.approx(10 * np.log10(25))
    assert snr_db(np.float32([3, 4]), np.float32([3, 4])) == float("inf")


def test_no_error_where_softmax_and_boxes_see_none():
    shifted = replace(FOUR, logits=FOUR.logits + 2, maps=FOUR.maps * 4)
    error = output_error(shifted, FOUR, tau=0.5)
    assert (error.logits_snr_db, error.map_snr_db) == (float("inf"), float("inf"))
    assert (error.box_agreement, error.top1_agreement) == (100, 100)


def test_error_by_hand():
    other = replace(FOUR, logits=FOUR.logits.copy(), maps=FOUR.maps.copy())
    other.logits[0] = [1, 9, 2, 3, 4, 5]  # two values of six exchanged: 2 x 8^2 of noise
    other.maps[1] = map_of(5, 5, 8, 7)  # 3 of the 37 ones lost; IoU 6/9
    error = output_error(other, FOUR, tau=0.5)
    power = sum(float(np.square(row - row.mean()).sum()) for row in FOUR.logits)
    assert error.logits_snr_db == pytest.approx(10 * np.log10(power / 128), rel=1e-5)
    assert error.map_snr_db == pytest.approx(10 * np.log10(37 / 3))
    assert (error.box_agreement, error.top1_agreement) == (75, 75)


class Numbered:
    """Five images; every pixel of image i is i."""

    class_names = ("a", "b")

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.full((8, 8, 3), index, np.uint8), index % 2, ((0, 0, index + 1, 8),), str(index))


def brightness(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    value = images[:, 0, 0, 0] * 255
    return np.stack([value, -value], 1), np.tile(value[:, None, None], (1, 2, 2))


def test_outputs_stand_in_the_order_of_the_data_set():
    seen = []
    outputs, negated = collect_outputs(
        [brightness, lambda images: tuple(-out for out in brightness(images))],
        Numbered(),
        PLAIN,
        batch_size=2,
        progress=lambda done, total, note="": seen.append((done, total)),
    )
    np.testing.assert_allclose(outputs.logits[:, 0], range(5), atol=1e-5)
    np.testing.assert_allclose(negated.maps[:, 1, 1], [0, -1, -2, -3, -4], atol=1e-5)
    assert outputs.labels.tolist() == [0, 1, 0, 1, 0]
    assert outputs.boxes[3] == (0, 0, 4, 8)
    assert outputs.image_size == 8
    assert seen == [(2, 5), (4, 5), (5, 5)]


class WithoutBoxes(Numbered):
    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), boxes=())


def test_batches_ask_for_no_box():
    labels = [some for _, some, _ in batches(WithoutBoxes(), PLAIN, 2)]
    assert labels == [[0, 1], [0, 1], [0]]
    with pytest.raises(DataError, match="image 0 has no box"):
        collect_outputs([brightness], WithoutBoxes(), PLAIN)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_returns_no_number_is_refused(value):
    def broken(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, maps = brightness(images)
        return logits, np.where(images[:, 0, :2, :2] * 255 > 2.5, value, maps)

    with pytest.raises(ModelError, match="NaN or infinity near image 2"):
        collect_outputs([broken], Numbered(), PLAIN, batch_size=2)


def test_a_model_of_other_classes_is_refused():
    with pytest.raises(ModelError, match="knows 3 classes and the data set has 2"):
        collect_outputs([lambda images: (np.zeros((len(images), 3)), np.zeros((len(images), 2, 2)))], Numbered(), PLAIN)
