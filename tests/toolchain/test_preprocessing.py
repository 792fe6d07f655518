from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from toolchain.errors import DataError
from toolchain.preprocessing import Preprocessing, read_image

EIGHT = Preprocessing(8, 10, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_crop_takes_the_middle():
    pixels = noise(20, 10)
    assert (EIGHT.crop(Image.fromarray(pixels)) == pixels[1:9, 6:14]).all()


def test_crop_resizes_the_short_side_first():
    picture = Image.fromarray(noise(30, 61))
    resized = np.asarray(picture.resize((10, 20), Image.Resampling.BILINEAR))
    assert (EIGHT.crop(picture) == resized[6:14, 1:9]).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "1"])
def test_crop_makes_rgb_of_every_mode(mode):
    assert EIGHT.crop(Image.new(mode, (12, 17))).shape == (8, 8, 3)


def test_a_box_follows_the_crop():
    assert EIGHT.crop_box((7, 2, 9, 4), (20, 10)) == (1, 1, 3, 3)


def test_a_box_follows_the_resize_and_ends_at_the_crop():
    # 40 x 20 halves to 20 x 10, and the crop begins at (6, 1).
    assert EIGHT.crop_box((14, 6, 18, 10), (40, 20)) == (1, 2, 3, 4)
    assert EIGHT.crop_box((0, 0, 40, 20), (40, 20)) == (0, 0, 8, 8)


def test_a_box_goes_back_to_where_it_came_from():
    assert EIGHT.uncrop_box((1, 2, 3, 4), (40, 20)) == (14, 6, 18, 10)


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.lists(st.integers(0, 224), min_size=2, max_size=2, unique=True).map(sorted),
    st.lists(st.integers(0, 224), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_uncrop_is_the_inverse_of_crop(width, height, across, down):
    preprocessing = Preprocessing(224, 256, mean=(0, 0, 0), std=(1, 1, 1))
    box = (across[0], down[0], across[1], down[1])
    there = preprocessing.uncrop_box(box, (width, height))
    assert 0 <= there[0] <= there[2] <= width
    assert 0 <= there[1] <= there[3] <= height
    assert preprocessing.crop_box(there, (width, height)) == pytest.approx(box, abs=1e-6)


def test_without_a_short_side_the_whole_image_is_squashed_and_boxes_with_it():
    squash = replace(EIGHT, resize=None)
    picture = Image.fromarray(noise(40, 16))
    assert (squash.crop(picture) == np.asarray(picture.resize((8, 8), Image.Resampling.BILINEAR))).all()
    assert squash.crop_box((10, 4, 40, 16), (40, 16)) == (2, 2, 8, 8)
    assert squash.uncrop_box((2, 2, 8, 8), (40, 16)) == (10, 4, 40, 16)


def test_normalize_by_hand():
    images = np.zeros((1, 2, 3, 3), np.uint8)
    images[0, 1, 2] = (255, 0, 51)
    found = EIGHT.normalize(images)
    assert found.shape == (1, 3, 2, 3)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found[0, :, 1, 2], [1, -1, 0.2], atol=1e-6)
    np.testing.assert_allclose(found[0, :, 0, 0], [-1, -1, 0], atol=1e-6)


def test_an_image_is_read_as_rgb(tmp_path: Path):
    Image.new("L", (5, 4), 7).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (5, 4), (7, 7, 7))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named(tmp_path: Path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png is no readable image"):
        read_image(tmp_path / "a.png")


def test_half_an_image_is_no_image(tmp_path: Path):
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.png is no readable image"):
        read_image(tmp_path / "a.png")


def test_a_missing_image_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"gone\.png does not exist"):
        read_image(tmp_path / "gone.png")


def test_the_largest_value_is_black_or_white_in_one_channel():
    # Channels reach -1..1, -0.5..4.5 and -6..4.
    window = Preprocessing(8, 8, mean=(0.5, 0.1, 0.6), std=(0.5, 0.2, 0.1))
    assert window.largest == pytest.approx(6)
    extremes = window.normalize(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1).repeat(3, 3))
    assert abs(extremes).max() == pytest.approx(window.largest)
