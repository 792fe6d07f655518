"""Which tau, on which images, and what a figure is then called; on maps that give one of two boxes.

Every map is one half in an outer box and one in an inner box. Below tau 0.5 (level 127) the outer box is found, from
there on the inner one: 0.499 x 255 and 0.50 x 255 are cut to 127, 0.498 x 255 to 126.
"""

import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolchain.artifacts import read_sidecar
from toolchain.card import ModelCard
from toolchain.curve_files import write_curves, writer_of
from toolchain.data.dataset import DataSet, Sample
from toolchain.errors import DataError, ModelError, UsageError
from toolchain.localizer import Localizer
from toolchain.preprocessing import Preprocessing
from toolchain.protocols import LCTR, MAXBOXACC, MAXBOXACCV2, TSCAM, Protocol
from toolchain.scores import Trial, score

SIDE = 12
OUTER, INNER, ELSEWHERE = (1.0, 1.0, 11.0, 11.0), (4.0, 4.0, 8.0, 8.0), (0.0, 0.0, 2.0, 2.0)
STEPS = np.zeros((SIDE, SIDE), np.float32)
STEPS[1:11, 1:11] = 0.5
STEPS[4:8, 4:8] = 1
CARD = ModelCard("none", tuple("abcdef"), Preprocessing(SIDE, 14, (0.0,) * 3, (1.0,) * 3), tau=0.25)
FLAT = np.zeros((SIDE, SIDE), np.float32)


class Stored:
    """Images of class `a`, `b`, ... in turn, each with its index in every pixel."""

    class_names = CARD.class_names

    def __init__(self, *boxes: tuple) -> None:
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.full((SIDE, SIDE, 3), index, np.uint8), index, self.boxes[index], f"number {index}")


class Opened:
    """Data sets by split, instead of those on disk; remembers what was asked for."""

    def __init__(self, **splits: DataSet) -> None:
        self.splits = splits
        self.asked: list[tuple[str, int | None, int | None]] = []

    def __call__(self, spec: str, split: str, window: Preprocessing, images: int | None) -> DataSet:
        self.asked.append((split, window.resize, images))
        return self.splits[split]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """The inner box is true on val, the outer one on test."""
    fake = Opened(test=Stored((OUTER,), (ELSEWHERE, OUTER)), val=Stored((INNER,), (INNER,), (INNER,)))
    monkeypatch.setattr("toolchain.scores.open_data", fake)
    return fake


def indices(images: np.ndarray) -> np.ndarray:
    return np.rint(images[:, 0, 0, 0] * 255).astype(int)


def logits_of(images: np.ndarray) -> np.ndarray:
    """Right for image 0; for image 1 its class is second; for image 2 first again."""
    table = np.eye(6, dtype=np.float32)
    table[1, 0] = 2
    return table[indices(images)]


def localizer(true: np.ndarray = STEPS, predicted: np.ndarray = STEPS, card: ModelCard = CARD) -> Localizer:
    """The maps of the true classes and of the predicted ones; other classes have none."""

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return logits_of(images), np.stack([predicted] * len(images))

    def predict_classes(images: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert classes.tolist() == indices(images).tolist()
        return logits_of(images), np.stack([true] * len(images))

    return Localizer(predict, card, predict_classes)


def trial(protocol: Protocol, **changes) -> Trial:
    return replace(Trial("shapes", "test", None, protocol), **changes)


def figures(protocol: Protocol, **changes) -> dict:
    return score(localizer(), "m.onnx", trial(protocol, **changes)).as_dict()


def test_maxboxacc_takes_the_best_tau_of_the_evaluated_images(opened: Opened) -> None:
    found = figures(MAXBOXACC)
    assert found.pop("images_per_second") > 0
    assert found == {
        "file": "m.onnx",
        "data": "shapes",
        "split": "test",
        "protocol": "maxboxacc",
        "images": 2,
        "top1": 50,
        "top5": 100,
        "max_box_acc": 100,
        "constant_maps": 0,
        # The middle of 0.000 to 0.498.
        "tau": 0.249,
        "taus": {"max_box_acc": 0.249},
        "tau_from": "best",
        "tau_source": "best over the evaluated images themselves, as the protocol defines it",
    }
    assert opened.asked == [("test", None, None)]


def test_with_a_tau_of_other_images_it_is_no_maximum_and_is_not_called_one(opened: Opened) -> None:
    found = figures(MAXBOXACC, tau_from="val", images=40)
    assert "max_box_acc" not in found
    # The middle of 0.499 to 0.999, where the inner box is found: wrong on test.
    assert (found["box_acc"], found["tau"], found["taus"]) == (0, 0.749, {"box_acc": 0.749})
    assert (found["tau_from"], found["tau_source"]) == ("val", "chosen on 3 images of val")
    assert found["images"] == 2
    assert opened.asked == [("test", None, 40), ("val", None, 40)]


def test_the_two_names_stand_in_the_titles_too(opened: Opened) -> None:
    def titles(**changes) -> list[str]:
        return [figure.title for figure in score(localizer(), "m.onnx", trial(MAXBOXACCV2, **changes)).figures]

    plain = ["BoxAccV2", "BoxAccV2 IoU 0.3", "BoxAccV2 IoU 0.5", "BoxAccV2 IoU 0.7"]
    assert titles(tau_from="val") == titles(tau=0.5) == plain
    assert titles() == titles(tau_from="best") == [f"Max{title}" for title in plain]


def test_maxboxaccv2_is_a_mean_and_each_part_has_its_tau(opened: Opened) -> None:
    # 9 x 9 pixels: of the outer box's 11 x 11 0.67, enough for 0.3 and 0.5; of the inner 5 x 5 0.31, enough for 0.3.
    opened.splits["test"] = Stored(((2.0, 2.0, 10.0, 10.0),))
    found = figures(MAXBOXACCV2)
    assert found["max_box_acc_v2"] == pytest.approx(200 / 3)
    assert [found[f"max_box_acc_v2_{iou}"] for iou in (30, 50, 70)] == [100, 100, 0]
    # Right everywhere, right with the outer box, right nowhere: the middle of 1000, of 499, of 1000.
    assert found["taus"] == {"max_box_acc_v2_30": 0.5, "max_box_acc_v2_50": 0.249, "max_box_acc_v2_70": 0.5}
    assert found["tau"] is None


def test_tscam_chooses_tau_on_val(opened: Opened) -> None:
    found = figures(TSCAM)
    # The middle of 0.50 to 0.99.
    assert (found["tau"], found["tau_from"], found["tau_source"]) == (0.75, "val", "chosen on 3 images of val")
    assert found["taus"] == {"gt_known_loc": 0.75, "top1_loc": 0.75, "top5_loc": 0.75}
    assert (found["gt_known_loc"], found["top1_loc"], found["top5_loc"]) == (0, 0, 0)
    assert opened.asked == [("test", None, None), ("val", None, None)]


def test_a_given_tau_is_used_as_it_is_and_val_is_not_read(opened: Opened) -> None:
    found = figures(TSCAM, tau=0.1234)
    assert (found["tau"], found["tau_from"], found["tau_source"]) == (0.1234, "given", "given by --tau")
    assert (found["gt_known_loc"], found["top1_loc"], found["top5_loc"]) == (100, 50, 100)
    assert opened.asked == [("test", None, None)]


def test_lctr_uses_the_model_s_tau_its_own_crop_and_one_box(opened: Opened) -> None:
    found = figures(LCTR)
    assert (found["tau"], found["tau_from"], found["tau_source"]) == (0.25, "model", "from the model's metadata")
    # Of image 1 the first box is elsewhere.
    assert (found["gt_known_loc"], found["top1_loc"], found["top5_loc"]) == (50, 50, 50)
    assert opened.asked == [("test", 14, None)]
    assert figures(LCTR, tau_from="val")["tau"] == 0.75


def test_lctr_reads_the_map_of_the_predicted_class_and_the_others_that_of_the_true_one(opened: Opened) -> None:
    only_true, only_predicted = localizer(predicted=FLAT), localizer(true=FLAT)
    assert score(only_true, "m", trial(LCTR)).constant_maps == 2
    assert score(only_predicted, "m", trial(LCTR)).constant_maps == 0
    for protocol in (TSCAM, MAXBOXACC, MAXBOXACCV2):
        assert score(only_true, "m", trial(protocol, tau=0.5)).constant_maps == 0
        assert score(only_predicted, "m", trial(protocol, tau=0.5)).constant_maps == 2


def test_progress_is_told_step_by_step(opened: Opened) -> None:
    told = []

    def step(name: str):
        return lambda done, total, note="": told.append((name, done, total))

    score(localizer(), "m", trial(TSCAM), step)
    assert told == [("choose tau on val", 3, 3), ("evaluate", 2, 2)]


def test_of_earlier_images_nothing_is_kept(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolchain.scores.BATCH_SIZE", 1)
    opened.splits["test"] = Stored(*[(OUTER,)] * 6)
    made, alive = [], []

    def predict_classes(images: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        alive.append(sum(map_() is not None for map_ in made))
        maps = STEPS[None].copy()
        made.append(weakref.ref(maps))
        return logits_of(images), maps

    score(replace(localizer(), predict_classes=predict_classes), "m", trial(MAXBOXACC))
    assert len(alive) == 6
    assert max(alive) == 1


def test_a_file_without_the_maps_is_refused_before_any_image_is_read(opened: Opened) -> None:
    top1 = replace(localizer(), predict_classes=None)
    for protocol in (TSCAM, MAXBOXACC, MAXBOXACCV2):
        with pytest.raises(ModelError) as refused:
            score(top1, "m.onnx", trial(protocol))
        assert str(refused.value) == (
            f"m.onnx gives the map of its predicted class alone, and protocol {protocol.name} needs that of the true "
            "class: export the model with --maps all."
        )
    assert opened.asked == []
    assert score(top1, "m.onnx", trial(LCTR)).protocol == "lctr"


def test_a_tau_of_another_protocol_is_refused(opened: Opened) -> None:
    with pytest.raises(UsageError, match=r"the tau of m is for protocol lctr, not tscam: use --tau-from val"):
        score(localizer(), "m", trial(TSCAM, tau_from="model"))
    card = replace(CARD, protocol="tscam", tau=0.75)
    assert score(localizer(card=card), "m", trial(TSCAM, tau_from="model")).tau == 0.75
    with pytest.raises(UsageError, match=r"the tau of m is for protocol tscam, not lctr"):
        score(localizer(card=card), "m", trial(LCTR))


@pytest.mark.parametrize(
    ("protocol", "changes", "complaint"),
    [
        (TSCAM, {"tau": 0.1, "tau_from": "val"}, "--tau 0.1 and --tau-from val contradict each other"),
        (TSCAM, {"tau": 1.0}, "--tau 1 is no share"),
        (TSCAM, {"tau": -0.1}, "--tau -0.1 is no share"),
        (TSCAM, {"tau": float("nan")}, "--tau nan is no share"),
        (TSCAM, {"tau_from": "test"}, "--tau-from test is unknown: choose one of model, val, best"),
        (TSCAM, {"tau_from": "given"}, "--tau-from given is unknown"),
        (TSCAM, {"tau_from": "best"}, "--tau-from best reads the boxes of the evaluated images .* protocol tscam"),
        (LCTR, {"tau_from": "best"}, "--tau-from best reads the boxes of the evaluated images .* protocol lctr"),
        (TSCAM, {"split": "val"}, "tau chosen on val says nothing on --split val"),
        (MAXBOXACC, {"split": "val", "tau_from": "val"}, "tau chosen on val says nothing on --split val"),
    ],
)
def test_a_tau_that_cannot_be_meant_is_refused(protocol: Protocol, changes: dict, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        trial(protocol, **changes)


@pytest.mark.parametrize(("protocol", "value"), [(LCTR, np.nan), (TSCAM, np.nan), (LCTR, np.inf), (MAXBOXACC, np.inf)])
def test_maps_that_are_no_numbers_are_refused(opened: Opened, protocol: Protocol, value: float) -> None:
    broken = STEPS.copy()
    broken[0, 0] = value
    with pytest.raises(ModelError, match="NaN or infinity near image 0"):
        score(localizer(broken, broken), "m", trial(protocol, tau=0.5))


def test_maxboxacc_counts_maps_with_nan(opened: Opened) -> None:
    broken = STEPS.copy()
    broken[0, 0] = np.nan
    found = score(localizer(broken), "m", trial(MAXBOXACC))
    assert found.constant_maps == 2
    assert found.as_dict()["max_box_acc"] == 0


@pytest.mark.parametrize("protocol", [LCTR, TSCAM, MAXBOXACC])
def test_an_image_without_a_box_is_refused(opened: Opened, protocol: Protocol) -> None:
    opened.splits["test"] = Stored((OUTER,), ())
    with pytest.raises(DataError, match="image number 1 has no box"):
        score(localizer(), "m", trial(protocol, tau=0.5))


def test_other_classes_are_refused(opened: Opened) -> None:
    card = replace(CARD, class_names=("a", "b"))
    with pytest.raises(ModelError, match="knows 2 classes and the data set has 6"):
        score(localizer(card=card), "m", trial(TSCAM, tau=0.5))


def test_a_curve_holds_every_threshold_and_the_one_in_use(opened: Opened, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(b"model")
    found = score(localizer(), str(file), trial(TSCAM, tau=0.125, curve=True))
    write_curves(found, tmp_path / "curve.json")
    record = json.loads((tmp_path / "curve.json").read_text())
    curve = record.pop("curve")
    assert record == found.as_dict()
    assert list(curve) == ["tau", "gt_known_loc", "top1_loc", "top5_loc"]
    assert curve["tau"] == sorted([*(k / 100 for k in range(100)), 0.125])
    assert [rate for tau, rate in zip(curve["tau"], curve["top1_loc"], strict=True) if tau < 0.5] == [50] * 51
    assert [rate for tau, rate in zip(curve["tau"], curve["top1_loc"], strict=True) if tau >= 0.5] == [0] * 50
    sidecar = read_sidecar(tmp_path / "curve.json")
    assert (sidecar.kind, sidecar.parameters["protocol"], sidecar.metadata["tau_from"]) == ("curve", "tscam", "given")
    assert list(sidecar.inputs) == ["localizer"]


def test_a_plot_is_the_same_bytes_each_time(opened: Opened, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(b"model")
    found = score(localizer(), str(file), trial(MAXBOXACCV2, curve=True))
    for name in ("a.png", "b.png"):
        write_curves(found, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (840, 540)
        assert "Software" not in picture.info
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.png.json", "b.png", "b.png.json", "m.onnx"]


def test_a_curve_of_another_suffix_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--curve x.pdf ends neither in .json nor in .png"):
        writer_of(Path("x.pdf"))
