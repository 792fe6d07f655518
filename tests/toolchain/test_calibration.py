from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolchain import calibration
from toolchain.data.shapes import PREPROCESSING, Shapes
from toolchain.errors import DataError


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


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        list(calibration.folder(tmp_path).images(PREPROCESSING))
