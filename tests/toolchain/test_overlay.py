from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from toolchain.overlay import CASING, PENS, boxed, enlarged, heat, png_bytes

GREY = np.full((96, 96, 3), 128, np.uint8)
BOX = (20.0, 30.0, 71.0, 81.0)


def is_colour(image, colour):
    return (image == np.array(colour, np.uint8)).all(-1)


def test_heat_is_brightest_where_the_map_is_highest():
    map_ = np.zeros((4, 4), np.float32)
    map_[0, 3] = 7
    shown = heat(GREY, map_).sum(-1)
    assert np.unravel_index(shown.argmax(), shown.shape) in [(y, x) for y in range(24) for x in range(72, 96)]
    assert shown[90, 5] == shown.min()


def test_heat_ignores_the_scale_of_the_map():
    map_ = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    # Eight times is exact in binary.
    np.testing.assert_array_equal(heat(GREY, map_), heat(GREY, 8 * map_))


def test_a_constant_map_is_dark_everywhere():
    shown = heat(GREY, np.full((4, 4), 5, np.float32))
    assert shown.shape == GREY.shape
    assert shown.dtype == np.uint8
    assert (shown == shown[0, 0]).all()
    assert shown.max() < 128


def test_a_box_is_outlined_where_it_is_and_the_image_is_left_alone():
    image = GREY.copy()
    shown = boxed(image, {"truth": BOX})
    ys, xs = np.nonzero(is_colour(shown, PENS["truth"].colour))
    assert abs(xs.min() - 20) <= 1
    assert abs(xs.max() - 70) <= 1
    assert abs(ys.min() - 30) <= 1
    assert abs(ys.max() - 80) <= 1
    assert (shown[45:65, 40:60] == 128).all()
    assert (image == 128).all()


def test_boxes_differ_without_colour():
    """Along the upper side: truth is one stroke, FP32 a few long ones, INT8 many short ones."""

    def strokes(name):
        line = is_colour(boxed(GREY, {name: BOX}), PENS[name].colour)[30, 20:71]
        return int(np.diff(line.astype(int), prepend=0).clip(0).sum()), int(line.sum())

    (truth, solid), (fp32, dashed), (int8, dotted) = strokes("truth"), strokes("fp32"), strokes("int8")
    assert truth == 1
    assert 1 < fp32 < int8
    assert solid > dashed > dotted


@pytest.mark.parametrize("box", [(0.0, 0.0, 96.0, 96.0), (40.0, 40.0, 41.0, 41.0), (-9.0, -9.0, 300.0, 50.0)])
@pytest.mark.parametrize("name", list(PENS))
def test_any_box_leaves_ink_on_the_image(name, box):
    shown = boxed(GREY, {name: box})
    assert is_colour(shown, PENS[name].colour).any()
    assert is_colour(shown, CASING).any()


def test_a_box_as_large_as_the_image_shows_all_four_sides():
    ink = is_colour(boxed(GREY, {"truth": (0.0, 0.0, 96.0, 96.0)}), PENS["truth"].colour)
    assert all(side.any(0).all() for side in (ink[:3], ink[-3:], ink[:, :3].T, ink[:, -3:].T))


def test_enlarged():
    assert enlarged(GREY, 1) is GREY
    assert enlarged(GREY, 3).shape == (288, 288, 3)


def test_png_bytes_decode_to_the_image():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(png_bytes(image)))), image)
