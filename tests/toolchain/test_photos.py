"""Boxes go where the painted pixels go."""

import copy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from toolchain.data.photos import Photo, Photos
from toolchain.preprocessing import Preprocessing

SIDE = 16
MEAN = STD = (0.5, 0.5, 0.5)


@st.composite
def grids(draw: st.DrawFn) -> tuple[Preprocessing, tuple[int, int], tuple[int, int]]:
    """A preprocessing, how many image pixels become one of its result, and an image in units of that.

    Whole pixels become whole pixels, so that where a box ends is beyond doubt.
    """
    if draw(st.booleans()):
        return Preprocessing(SIDE, None, MEAN, STD), (draw(st.integers(1, 3)), draw(st.integers(1, 3))), (SIDE, SIDE)
    short, scale = draw(st.integers(SIDE, SIDE + 6)), draw(st.integers(1, 3))
    cells = (short, draw(st.integers(short, short + 20)))
    return Preprocessing(SIDE, short, MEAN, STD), (scale, scale), cells[:: draw(st.sampled_from([1, -1]))]


def interval(length: int) -> st.SearchStrategy[tuple[int, int]]:
    ends = st.lists(st.integers(0, length), min_size=2, max_size=2, unique=True)
    return ends.map(lambda found: (min(found), max(found)))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_box_of_an_image_follows_resize_and_crop(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    preprocessing, (across, down), (columns, rows) = data.draw(grids())
    cells = data.draw(st.lists(st.tuples(interval(columns), interval(rows)), min_size=0, max_size=3))
    pixels = np.zeros((rows * down, columns * across, 3), np.uint8)
    boxes = []
    for channel, ((left, right), (top, bottom)) in enumerate(cells):
        x0, y0, x1, y1 = left * across, top * down, right * across, bottom * down
        pixels[y0:y1, x0:x1, channel] = 255
        boxes.append((float(x0), float(y0), float(x1), float(y1)))
    folder = tmp_path_factory.getbasetemp()
    Image.fromarray(pixels).save(folder / "painted.png")
    sample = Photos(folder, ["only"], [Photo("painted.png", 0, tuple(boxes))], preprocessing)[0]

    assert len(sample.boxes) == len(boxes)
    for channel, (x0, y0, x1, y1) in enumerate(sample.boxes):
        seen = np.zeros((SIDE, SIDE), bool)
        seen[round(y0) : round(y1), round(x0) : round(x1)] = True
        assert (x0, y0, x1, y1) == pytest.approx((round(x0), round(y0), round(x1), round(y1)))
        # The resize blurs an edge evenly to both sides, so its middle stays in place.
        assert ((sample.image[..., channel] > 127) == seen).all()


def test_the_same_index_gives_the_same_sample(tmp_path: Path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(tmp_path / name)
    photos = [Photo("a.png", 0, ((5, 3, 41, 29), (1, 2, 3, 4))), Photo("b.png", 1, ((0, 0, 50, 30),))]
    before = copy.deepcopy(photos)
    data = Photos(tmp_path, ["first", "second"], photos, Preprocessing(SIDE, 18, MEAN, STD))
    first, other, again = data[0], data[1], data[0]
    assert (first.image == again.image).all()
    assert not (first.image == other.image).all()
    assert (first.label, first.boxes, first.name) == (again.label, again.boxes, again.name)
    assert photos == before
