import numpy as np
import pytest
from PIL import Image

from toolchain.card import ModelCard
from toolchain.localizer import Localizer, localize, localize_crop
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
