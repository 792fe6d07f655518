import math
from dataclasses import replace

import numpy as np
import pytest

from toolchain.card import ModelCard
from toolchain.comparison import Accuracy, accuracies, accuracy_from_dict, check_drop, check_p99, feeds_from_images
from toolchain.data.dataset import Sample
from toolchain.errors import GateFailed
from toolchain.evaluation import Evaluation
from toolchain.localizer import Localizer
from toolchain.preprocessing import Preprocessing

CARD = ModelCard("none", ("a", "b"), Preprocessing(4, 4, (0.0,) * 3, (1.0,) * 3), 0.5)
FOUND = Evaluation(
    images=10, top1=90, top5=100, gt_known_loc=80, top1_loc=70, top5_loc=80, constant_maps=0, tau=0.5, protocol="lctr"
)


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
        maps = np.tile(np.array([[1.0, 0.2], [0.0, 0.0]], np.float32), (len(images), 1, 1))
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


@pytest.mark.parametrize(("metric", "value"), [("gt_known_loc", 79.4), ("top1_loc", 69.0), ("top1_loc", math.nan)])
def test_a_drop_over_the_bound_fails_the_gate(metric: str, value: float) -> None:
    worse = Accuracy(replace(FOUND, **{metric: value}), None)
    with pytest.raises(GateFailed, match=f"int8 has {metric} .* over --max-drop 0.5"):
        check_drop({"fp32": Accuracy(FOUND, None), "int8": worse}, 0.5)


def test_a_drop_at_the_bound_passes() -> None:
    check_drop({"fp32": Accuracy(FOUND, None), "int8": Accuracy(replace(FOUND, gt_known_loc=79.5), None)}, 0.5)


def latency(p99: float) -> dict:
    rows = {"fp32": {"timings": {"p99": 100.0}}, "int8": {"timings": {"p99": p99}}}
    return {"baseline": "fp32", "batches": {"8": {"int8": {"timings": {"p99": 1e9}}}, "1": rows}}


def test_p99_is_judged_at_the_smallest_batch_and_not_for_the_baseline() -> None:
    check_p99(latency(5.0), 5.0)
    with pytest.raises(GateFailed, match=r"int8 has a p99 of 5.10 ms at batch 1"):
        check_p99(latency(5.1), 5.0)
