"""Maps as large as the image, where the resize changes nothing, so that every box can be read off by eye."""

from collections import deque

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from toolchain.boxes import BoxRules, box_from_map, boxes_above, iou, levels_from_map, overlaps, overlaps_by_tau


def map_of(*blobs: tuple[int, int, int, int, float], side: int = 12) -> np.ndarray:
    """A map of zeros with filled rectangles x0, y0, x1, y1, value."""
    map_ = np.zeros((side, side), np.float32)
    for x0, y0, x1, y1, value in blobs:
        map_[y0:y1, x0:x1] = value
    return map_


def components(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """8-connected components as sets of (row, column), by flooding."""
    left = set(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True))
    found = []
    while left:
        queue, component = deque([left.pop()]), set()
        while queue:
            row, column = queue.popleft()
            component.add((row, column))
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            queue.extend(around)
        found.append(component)
    return found


def bounding(component: set[tuple[int, int]]) -> tuple[float, float, float, float]:
    rows, columns = zip(*component, strict=True)
    return float(min(columns)), float(min(rows)), float(max(columns) + 1), float(max(rows) + 1)


def test_the_larger_of_two_blobs():
    assert box_from_map(map_of((1, 1, 3, 3, 1.0), (5, 6, 10, 11, 1.0)), 12, 0.5).box == (5, 6, 10, 11)


def test_size_decides_and_height_does_not():
    assert box_from_map(map_of((1, 1, 3, 3, 9.0), (5, 6, 10, 11, 5.0)), 12, 0.5).box == (5, 6, 10, 11)


def test_blobs_that_touch_at_a_corner_are_one():
    assert box_from_map(map_of((1, 1, 4, 4, 1.0), (4, 4, 7, 7, 1.0)), 12, 0.5).box == (1, 1, 7, 7)


def test_a_line_has_no_area():
    # Contours run through pixel centres: 1 x 10 pixels enclose nothing, 2 x 2 enclose one.
    assert box_from_map(map_of((1, 1, 11, 2, 1.0), (4, 6, 6, 8, 1.0)), 12, 0.5).box == (4, 6, 6, 8)


def test_a_hole_changes_nothing():
    ring = map_of((2, 3, 9, 10, 1.0))
    ring[5:7, 4:6] = 0
    assert box_from_map(ring, 12, 0.5).box == (2, 3, 9, 10)


def test_of_equal_blobs_one_is_taken():
    blobs = map_of((1, 1, 4, 4, 1.0), (7, 7, 10, 10, 1.0))
    assert box_from_map(blobs, 12, 0.5).box in {(1, 1, 4, 4), (7, 7, 10, 10)}


@pytest.mark.parametrize("box", [(0, 0, 4, 3), (8, 9, 12, 12), (0, 0, 12, 5), (3, 0, 6, 12)])
def test_a_blob_at_the_border_ends_there(box):
    assert box_from_map(map_of((*box, 1.0)), 12, 0.5).box == box


@pytest.mark.parametrize("value", [0.0, 2.6e-5, -3.0])
def test_a_constant_map_gives_the_whole_image_and_says_so(value):
    found = box_from_map(np.full((14, 14), value, np.float32), 224, 0.09)
    assert found.box == (0, 0, 224, 224)
    assert found.constant


def test_nothing_above_the_threshold_gives_the_whole_image():
    found = box_from_map(map_of((2, 2, 6, 6, 1.0)), 12, 1.0)
    assert found.box == (0, 0, 12, 12)
    assert not found.constant


def test_the_threshold_is_strict():
    # Half of the maximum is level 127, and int(0.5 * 255) = 127: not above it. int(0.49 * 255) = 124.
    steps = map_of((1, 1, 11, 11, 0.5), (4, 4, 8, 8, 1.0))
    assert box_from_map(steps, 12, 0.5).box == (4, 4, 8, 8)
    assert box_from_map(steps, 12, 0.49).box == (1, 1, 11, 11)


def test_scale_and_offset_do_not_matter():
    map_ = np.random.default_rng(0).random((14, 14), np.float32)
    expected = box_from_map(map_, 224, 0.8)
    assert box_from_map(map_ / 2**16, 224, 0.8) == expected
    assert box_from_map(map_ * 4, 224, 0.8) == expected


def test_a_map_is_enlarged_around_pixel_centres():
    peak = np.zeros((7, 7), np.float32)
    peak[3, 3] = 1
    x0, y0, x1, y1 = box_from_map(peak, 112, 0.5).box
    assert (x0 + x1, y0 + y1) == (112, 112)
    # A tent of half-width 16 above half its height: 16 pixels wide, give or take the pixel at each end.
    assert 14 <= x1 - x0 <= 18


def plain_iou(first, second, one: int) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0]) + one
    height = min(first[3], second[3]) - max(first[1], second[1]) + one
    shared = max(width, 0) * max(height, 0)
    union = sum((b[2] - b[0] + one) * (b[3] - b[1] + one) for b in (first, second)) - shared
    return shared / union


corners = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(6, 9), st.integers(6, 9))


@settings(max_examples=50)
@given(
    npst.arrays(np.uint8, (9, 9), elements=st.one_of(st.integers(0, 255), st.sampled_from([0, 7, 200]))),
    st.lists(corners, min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_one_look_at_each_level_gives_what_every_threshold_alone_gives(levels, truths, all_contours, inclusive):
    rules = BoxRules(all_contours=all_contours, inclusive=inclusive, empty=(0, 0, 1, 1))
    taus = np.arange(300) / 300
    expected = [
        max(
            plain_iou(box, truth, int(inclusive))
            for box in boxes_above(levels, int(tau * int(levels.max())), rules).tolist()
            for truth in truths
        )
        for tau in taus
    ]
    assert overlaps_by_tau(levels, np.array(truths, float), taus, rules).tolist() == expected


def test_every_contour_has_a_box_and_so_has_a_hole():
    ring = map_of((1, 1, 8, 8, 1.0), (9, 9, 11, 12, 1.0))
    ring[3:6, 3:6] = 0
    levels = levels_from_map(ring, 12, BoxRules())
    found = {tuple(box) for box in boxes_above(levels, 127, BoxRules(all_contours=True)).tolist()}
    # The contour of a hole runs through the pixels around it.
    assert found == {(1, 1, 8, 8), (2, 2, 7, 7), (9, 9, 11, 12)}


def test_a_box_may_have_to_end_at_the_last_pixel():
    levels = levels_from_map(map_of((3, 8, 12, 12, 1.0)), 12, BoxRules())
    assert boxes_above(levels, 0, BoxRules()).tolist() == [[3, 8, 12, 12]]
    assert boxes_above(levels, 0, BoxRules(inside=True)).tolist() == [[3, 8, 11, 11]]


@pytest.mark.parametrize("empty", [(0, 0, 0, 0), (0, 0, 1, 1)])
@pytest.mark.parametrize("value", [0.0, 5.0, np.nan])
def test_a_map_that_tells_nothing_gives_the_empty_box(value, empty):
    levels = levels_from_map(np.full((14, 14), value, np.float32), 24, BoxRules(empty=empty))
    assert not levels.any()
    assert boxes_above(levels, 0, BoxRules(empty=empty)).tolist() == [list(empty)]


def test_one_nan_makes_a_map_tell_nothing():
    map_ = map_of((2, 2, 6, 6, 1.0))
    map_[11, 11] = np.nan
    assert not levels_from_map(map_, 24, BoxRules(precision=np.float64)).any()


@given(npst.arrays(np.uint8, (9, 9), elements=st.integers(0, 255)), st.integers(1, 98))
def test_the_box_is_that_of_one_connected_region(levels, percent):
    levels = levels.copy()
    levels[0, 0], levels[8, 8] = 0, 255  # min-max then changes nothing
    tau = percent / 100
    regions = components(levels > int(tau * 255))
    found = box_from_map(levels.astype(np.float32), 9, tau).box
    assert found in [bounding(region) for region in regions]


@given(st.lists(st.tuples(st.integers(2, 6), st.integers(2, 6)), min_size=4, max_size=4))
def test_the_box_is_that_of_the_largest_rectangle(sizes):
    corners = [(1, 1), (9, 1), (1, 9), (9, 9)]
    areas = [(width - 1) * (height - 1) for width, height in sizes]
    assume(areas.count(max(areas)) == 1)
    rectangles = [(x, y, x + width, y + height) for (x, y), (width, height) in zip(corners, sizes, strict=True)]
    found = box_from_map(map_of(*((*r, 1.0) for r in rectangles), side=16), 16, 0.3).box
    assert found == rectangles[areas.index(max(areas))]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((0, 0, 2, 2), 1),
        ((1, 1, 3, 3), 1 / 7),
        ((0, 0, 2, 1), 1 / 2),
        ((2, 0, 4, 2), 0),
        ((5, 5, 6, 6), 0),
        ((1, 1, 1, 1), 0),
    ],
)
def test_iou_by_hand(second, expected):
    assert iou((0, 0, 2, 2), second) == pytest.approx(expected)
    assert iou(second, (0, 0, 2, 2)) == pytest.approx(expected)


def test_overlaps_that_count_the_last_pixel_by_hand():
    first = np.array([[0, 0, 1, 1], [0, 0, 0, 0]], float)
    second = np.array([[0, 0, 1, 1], [1, 1, 2, 2], [0, 0, 0, 0], [5, 5, 5, 5]], float)
    # Of 2 x 2 pixels: all, one of 4 + 4 - 1, one of 4, none; of one pixel: one of 4, none, all, none.
    expected = [[1, 1 / 7, 1 / 4, 0], [1 / 4, 0, 1, 0]]
    np.testing.assert_allclose(overlaps(first, second, inclusive=True), expected)
