from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exporters.image_input import ImageInput
from toolchain import calibration
from toolchain.calibration import Stated, window_of
from toolchain.card import ModelCard
from toolchain.data.shapes import PREPROCESSING, Shapes
from toolchain.errors import DataError, UsageError


def test_a_folder_is_cropped_and_normalized(tmp_path: Path) -> None:
    for name, level in (("a", 0), ("b", 255)):
        Image.new("RGB", (300, 200), (level,) * 3).save(tmp_path / f"{name}.png")
    (batch,) = calibration.folder(tmp_path).images(PREPROCESSING)
    assert batch.shape == (2, 3, 112, 112)
    assert np.unique(batch[0]) == pytest.approx((0 - 0.45) / 0.25)
    assert np.unique(batch[1]) == pytest.approx((1 - 0.45) / 0.25)


def test_noise_and_training_images_come_in_the_number_asked_for() -> None:
    for source in (calibration.noise(6, 0), calibration.training_images("shapes", 6, PREPROCESSING)):
        batches = list(source.images(PREPROCESSING))
        assert sum(map(len, batches)) == source.count == 6
        assert max(map(len, batches)) <= calibration.BATCH


def test_training_images_are_those_of_the_training_split() -> None:
    first = next(calibration.training_images("shapes", 2, PREPROCESSING).images(PREPROCESSING))
    expected = PREPROCESSING.normalize(np.stack([Shapes("train")[i].image for i in range(2)]))
    assert np.array_equal(first, expected)


def test_a_folder_is_read_a_batch_at_a_time(tmp_path: Path) -> None:
    for name in range(calibration.BATCH + 1):
        Image.new("RGB", (112, 112)).save(tmp_path / f"{name}.png")
    source = calibration.folder(tmp_path)
    (tmp_path / f"{calibration.BATCH}.png").write_text("no image")
    batches = source.images(PREPROCESSING)
    assert source.count == calibration.BATCH + 1
    assert len(next(batches)) == calibration.BATCH
    with pytest.raises(DataError, match="1 of 5 images cannot be read"):
        next(batches)


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        calibration.folder(tmp_path)
    with pytest.raises(UsageError, match="count is 0"):
        calibration.noise(0, 0)


MEAN, STD, MODEL = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), Path("some.onnx")
OPEN, FIXED = ImageInput("pixels", None), ImageInput("pixels", 32)


def test_a_model_of_ours_says_itself_how_images_are_prepared() -> None:
    metadata = ModelCard("lctr-nano", ("one",), PREPROCESSING, 0.5).to_metadata()
    assert window_of(metadata, FIXED, Stated(), MODEL) == PREPROCESSING
    with pytest.raises(UsageError, match=r"some\.onnx says itself"):
        window_of(metadata, FIXED, Stated(mean=MEAN), MODEL)


@pytest.mark.parametrize(("taken", "said"), [(FIXED, None), (FIXED, 32), (OPEN, 32)])
def test_of_a_foreign_model_the_user_says_it(taken: ImageInput, said: int | None) -> None:
    window = window_of({"producer": "somebody"}, taken, Stated(MEAN, STD, said), MODEL)
    assert (window.image_size, window.mean, window.std) == (32, MEAN, STD)


@pytest.mark.parametrize(
    ("taken", "stated", "complaint"),
    [
        (FIXED, Stated(), r"some\.onnx does not say how its images are normalized: give --mean and --std"),
        (FIXED, Stated(mean=MEAN), "give --mean and --std"),
        (FIXED, Stated(MEAN, (0.1, 0.0, 0.1)), r"--std 0\.1 0\.0 0\.1 cannot be"),
        (OPEN, Stated(MEAN, STD), "'pixels' of some.onnx takes images of any size"),
        (OPEN, Stated(MEAN, STD, 0), "--image-size 0 cannot be: .* takes at least 1"),
        (FIXED, Stated(MEAN, STD, 64), "--image-size 64 cannot be: .* takes 32"),
    ],
)
def test_what_is_not_said_or_cannot_be(taken: ImageInput, stated: Stated, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        window_of({}, taken, stated, MODEL)
