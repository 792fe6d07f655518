from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolchain.card import ModelCard
from toolchain.errors import ArtifactError, BackendError, ModelError, UsageError
from toolchain.localizer import (
    Localizer,
    localize,
    localize_crop,
    localizer_from_session,
    open_localizer,
    open_session,
)
from toolchain.pipeline import BUNDLED
from toolchain.preprocessing import Preprocessing

# 100 x 100 pixels are cut from the middle of an image whose short side was brought to 120.
CARD = ModelCard("none", ("cat", "dog"), Preprocessing(100, 120, (0.0,) * 3, (1.0,) * 3), 0.5)


def fixed(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class 1 at odds 3 to 1, in the upper left quarter of a map of 2 x 2."""
    assert images.shape == (1, 3, 100, 100)
    return np.log(np.array([[1.0, 3.0]], np.float32)), np.array([[[1.0, 0.0], [0.0, 0.0]]], np.float32)


def test_a_crop_is_localized_in_its_own_pixels() -> None:
    found = localize_crop(Localizer(fixed, CARD), np.zeros((100, 100, 3), np.uint8))
    assert (found.label, found.class_name) == (1, "dog")
    assert found.confidence == pytest.approx(0.75)
    assert found.window == (0, 0, 100, 100)
    assert not found.constant_map


def test_boxes_return_to_the_pixels_of_the_image() -> None:
    """360 x 240: halved to 180 x 120, window 40..140 x 10..110, so in the image 80..280 x 20..220."""
    crop = localize_crop(Localizer(fixed, CARD), np.zeros((100, 100, 3), np.uint8))
    found = localize(Localizer(fixed, CARD), Image.new("RGB", (360, 240)))
    assert found.window == (80, 20, 280, 220)
    x0, y0, x1, y1 = crop.box
    assert found.box == (80 + 2 * x0, 20 + 2 * y0, 80 + 2 * x1, 20 + 2 * y1)
    record = found.as_dict()
    assert record["box"] == list(found.box)
    assert "map" not in record


class Fixed:
    """A session that answers the same whatever it is fed."""

    inputs = ("image",)
    metadata = CARD.to_metadata()

    def __init__(self, **answers: np.ndarray) -> None:
        self.answers = answers
        self.outputs = tuple(answers)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert list(feeds) == ["image"]
        return self.answers


LOGITS = np.array([[1, 2], [4, 3]], np.float32)
# Two images, two classes, maps of 1 x 2.
ALL_MAPS = np.array([[[[1, -1]], [[2, 3]]], [[[-4, 5]], [[6, 7]]]], np.float32)
ATTENTION = np.array([[[10, 100]], [[1, 2]]], np.float32)
IMAGES = np.zeros((2, 3, 100, 100), np.float32)


def test_a_file_of_all_maps_gives_those_of_any_class() -> None:
    found = localizer_from_session(Fixed(logits=LOGITS, maps=ALL_MAPS, attention=ATTENTION), "all.onnx")
    logits, maps = found.predict(IMAGES)
    assert logits is LOGITS
    # Predicted are class 1 and class 0; what speaks against a class counts as nothing.
    assert maps.tolist() == [[[20, 300]], [[0, 10]]]
    assert found.predict_classes is not None
    logits, maps = found.predict_classes(IMAGES, np.array([0, 1]))
    assert logits is LOGITS
    assert maps.tolist() == [[[10, 0]], [[6, 14]]]


def test_a_file_of_one_map_gives_that_of_the_predicted_class_alone() -> None:
    found = localizer_from_session(Fixed(logits=LOGITS, map=ATTENTION), "top1.onnx")
    assert found.predict(IMAGES) == (LOGITS, ATTENTION)
    assert found.predict_classes is None


@pytest.mark.parametrize("outputs", [("logits",), ("logits", "maps"), ("map", "attention")])
def test_outputs_of_another_kind_are_refused(outputs: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match=f"other.onnx has the outputs {', '.join(outputs)}, not those of a localizer"):
        localizer_from_session(Fixed(**dict.fromkeys(outputs, LOGITS)), "other.onnx")


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("torch", 1e-4),
        pytest.param("torch:fp16", 2e-2, marks=pytest.mark.slow),
        pytest.param("torch:compile", 1e-4, marks=pytest.mark.slow),
        pytest.param("torch:cuda", 1e-2, marks=pytest.mark.gpu),
        pytest.param("torch:compile:cuda:fp16", 2e-2, marks=pytest.mark.gpu),
    ],
)
def test_a_checkpoint_in_a_named_backend_computes_what_it_does_without(name: str, tolerance: float) -> None:
    """TF32 on a GPU has 10 bits of mantissa, as FP16 has."""
    images = np.random.default_rng(0).standard_normal((2, 3, 112, 112)).astype(np.float32)
    with open_localizer(BUNDLED) as plain:
        assert plain.card.preprocessing.image_size == 112
        right = plain.predict(images)
        assert plain.predict_classes is not None
    with open_localizer(BUNDLED, name) as deployed:
        assert deployed.card == plain.card
        found = deployed.predict(images)
    for output, expected in zip(found, right, strict=True):
        np.testing.assert_allclose(output, expected, atol=tolerance * np.abs(expected).max())


def test_a_checkpoint_is_opened_beside_engines_by_torch_alone(tmp_path: Path) -> None:
    with open_session(BUNDLED) as session:
        assert (session.inputs, session.outputs) == (("image",), ("logits", "map"))
    with pytest.raises(BackendError, match=r"lctr-nano\.safetensors@torch is closed"):
        session.run({"image": np.zeros((1, 3, 112, 112), np.float32)})
    with (
        pytest.raises(UsageError, match=r"checkpoint, which 'onnxruntime' cannot run: use torch, or export it first"),
        open_session(BUNDLED, "onnxruntime"),
    ):
        pytest.fail("it opened")
    with pytest.raises(ArtifactError, match="does not exist"), open_session(tmp_path / "none.onnx"):
        pytest.fail("it opened")
