"""The protocols by hand on maps as large as the image, and against plain loops written from their definitions."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from toolchain.curve import Curves, Part, curves_from_parts, ranks_of
from toolchain.errors import UsageError
from toolchain.preprocessing import Preprocessing
from toolchain.protocols import LCTR, MAXBOXACC, MAXBOXACCV2, PROTOCOLS, TSCAM, Protocol, protocol_named

SIDE = 12
LINE_AT_THE_BORDER = (11, 0, 12, 12)
NOTHING = np.zeros((SIDE, SIDE), np.float32)


def map_of(*blobs: tuple[int, int, int, int]) -> np.ndarray:
    map_ = NOTHING.copy()
    for x0, y0, x1, y1 in blobs:
        map_[y0:y1, x0:x1] = 1
    return map_


def right(protocol: Protocol, map_: np.ndarray, *boxes: tuple[float, ...], metric: int = 0) -> bool:
    """Whether one image, whose class is given, counts at tau 0.5."""
    part = Part(np.zeros((1, 1), np.float32), map_[None], np.zeros(1, np.int64), [boxes])
    curves = curves_from_parts(protocol, [part], SIDE, np.array([0.5]))
    return curves.at(protocol.metrics[metric].key, 0.5) == 100


def test_protocols_by_name() -> None:
    assert list(PROTOCOLS) == ["lctr", "tscam", "maxboxacc", "maxboxaccv2"]
    assert protocol_named("tscam") is TSCAM
    with pytest.raises(UsageError, match="unknown protocol 'pxap': choose one of lctr, tscam, maxboxacc, maxboxaccv2"):
        protocol_named("pxap")


def test_all_but_lctr_see_the_whole_image() -> None:
    own = Preprocessing(224, 256, (0.0,) * 3, (1.0,) * 3)
    squashed = Preprocessing(224, None, (0.0,) * 3, (1.0,) * 3)
    assert {name: protocol.window(own) == squashed for name, protocol in PROTOCOLS.items()} == {
        "lctr": False,
        "tscam": True,
        "maxboxacc": True,
        "maxboxaccv2": True,
    }
    assert LCTR.window(own) == own


@pytest.mark.parametrize(("protocol", "step"), [(LCTR, 0.01), (TSCAM, 0.01), (MAXBOXACC, 0.001), (MAXBOXACCV2, 0.001)])
def test_thresholds_are_those_of_the_definition(protocol: Protocol, step: float) -> None:
    defined = np.arange(0, 1, step)
    np.testing.assert_allclose(protocol.taus, defined, rtol=1e-12)
    # And so are the levels, where a threshold is cut to a whole number.
    assert [int(tau * 255) for tau in protocol.taus] == [int(tau * 255) for tau in defined]


def test_the_last_pixel_counts_but_for_lctr() -> None:
    # The box is 1, 1, 3, 3: without its last pixels 4 of 10, with them 9 of 18.
    blob, truth = map_of((1, 1, 3, 3)), (1, 1, 6, 3)
    assert [right(protocol, blob, truth) for protocol in PROTOCOLS.values()] == [False, True, True, True]


@pytest.mark.parametrize(
    ("protocol", "met", "missed"),
    [
        (LCTR, (0, 0, 12, 6), (0, 0, 12, 5)),  # the whole image: 72 of 144, 60 of 144
        (TSCAM, (0, 0, 1, 2), (0, 0, 2, 2)),  # 0, 0, 1, 1: 4 of 6, 4 of 9
        (MAXBOXACC, (0, 0, 0, 1), (0, 0, 1, 1)),  # 0, 0, 0, 0: 1 of 2, 1 of 4
        (MAXBOXACCV2, (0, 0, 0, 2), (0, 0, 1, 1)),  # 0.3 is asked for: 1 of 3, 1 of 4
    ],
)
def test_a_constant_map_gives_the_empty_box(protocol: Protocol, met: tuple, missed: tuple) -> None:
    for constant in (NOTHING, NOTHING + 3):
        assert right(protocol, constant, met)
        assert not right(protocol, constant, missed)


@pytest.mark.parametrize("protocol", [MAXBOXACC, MAXBOXACCV2])
def test_a_map_with_nan_counts_as_constant(protocol: Protocol) -> None:
    broken = map_of((1, 1, 5, 5))
    broken[7, 7] = np.nan
    assert right(protocol, broken, (0, 0, 0, 0))
    assert not right(protocol, broken, (1, 1, 5, 5))


def test_constant_maps_are_counted() -> None:
    maps = np.stack([NOTHING, map_of((1, 1, 5, 5)), NOTHING + 2])
    part = Part(np.zeros((3, 1), np.float32), maps, np.zeros(3, np.int64), [[(0, 0, 12, 12)]] * 3)
    assert curves_from_parts(LCTR, [part], SIDE, np.array([0.5])).constant_maps == 2


def test_boxes_at_the_border() -> None:
    line = map_of(LINE_AT_THE_BORDER)
    # maxboxacc: the box ends at pixel 11 and has 1 x 12 pixels, the true one 2 x 13. tscam: the other way round.
    assert [right(MAXBOXACCV2, line, LINE_AT_THE_BORDER, metric=k) for k in range(3)] == [True, False, False]
    assert not right(MAXBOXACC, line, LINE_AT_THE_BORDER)
    assert not right(TSCAM, line, LINE_AT_THE_BORDER)
    assert right(LCTR, line, LINE_AT_THE_BORDER)


def test_true_boxes_are_cut_to_whole_pixels() -> None:
    # 0, 0, 0, 1 once cut: half of it is the empty box.
    assert right(MAXBOXACC, NOTHING, (0.9, 0.2, 0.99, 1.99))
    assert LCTR.truths([(0.9, 0.2, 3.5, 1.99)], SIDE).tolist() == [[0.9, 0.2, 3.5, 1.99]]


def test_a_rounding_error_does_not_cost_a_pixel() -> None:
    almost = float(np.nextafter(3, 0))
    assert MAXBOXACC.truths([(0, 0, almost, 2.9999)], SIDE).tolist() == [[0, 0, 3, 2]]
    # As whole numbers have it, for images of any width: 224 x / width, cut.
    for width in (3, 49, 333, 500, 4999):
        window = Preprocessing(224, None, (0.0,) * 3, (1.0,) * 3)
        for x in range(0, width, 7):
            (found,) = MAXBOXACC.truths([window.crop_box((x, 0, width, width), (width, width))], 224).tolist()
            assert found == [224 * x // width, 0, 224, 224]


def test_any_true_box_will_do_but_for_lctr() -> None:
    blob, elsewhere, here = map_of((6, 6, 10, 10)), (0, 0, 3, 3), (6, 6, 10, 10)
    assert [right(protocol, blob, elsewhere, here) for protocol in PROTOCOLS.values()] == [False, True, True, True]
    assert right(LCTR, blob, here, elsewhere)


def test_any_contour_will_do_for_maxboxaccv2_alone() -> None:
    blobs, smaller = map_of((0, 0, 6, 6), (8, 8, 11, 11)), (8, 8, 11, 11)
    assert [right(protocol, blobs, smaller) for protocol in PROTOCOLS.values()] == [False, False, False, True]
    assert right(MAXBOXACCV2, blobs, smaller, metric=2)


def test_one_tau_for_all_metrics_or_one_each() -> None:
    taus = np.array([0.0, 0.1, 0.2, 0.3])

    def best(protocol: Protocol, *rates: list[float]) -> list[float]:
        keys = [metric.key for metric in protocol.metrics]
        by_key = {key: np.array(rate) for key, rate in zip(keys, rates, strict=True)}
        return list(Curves(protocol, 10, 50.0, 60.0, 0, taus, by_key).best_taus().values())

    first, second, third = [10.0, 30.0, 20.0, 0.0], [40.0, 0.0, 0.0, 0.0], [0.0, 5.0, 5.0, 5.0]
    assert best(TSCAM, first, second, third) == [0.1, 0.1, 0.1]
    # Of equals the one in the middle.
    assert best(MAXBOXACCV2, first, second, third) == [0.1, 0.0, 0.2]
    assert best(MAXBOXACC, third) == [0.2]


@given(npst.arrays(np.float32, (4, 7), elements=st.integers(0, 3)), st.lists(st.integers(0, 6), min_size=4, max_size=4))
def test_ranks_are_those_of_a_stable_sort(logits: np.ndarray, labels: list[int]) -> None:
    orders = [sorted(range(7), key=lambda c: (-row[c], c)) for row in logits.tolist()]
    expected = [order.index(label) for order, label in zip(orders, labels, strict=True)]
    assert ranks_of(logits, np.array(labels)).tolist() == expected


# The definitions as plain loops: one class, one threshold, one contour and one true box at a time.


def pixel_iou(first, second) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0]) + 1
    height = min(first[3], second[3]) - max(first[1], second[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (first, second)]
    return width * height / (areas[0] + areas[1] - width * height)


def contours_of(levels: np.ndarray, tau: float, kind: int) -> list[np.ndarray]:
    _, mask = cv2.threshold(levels, int(tau * levels.max()), 255, kind)
    return list(cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0])


def tscam_right(map_: np.ndarray, boxes, side: int, tau: float) -> bool:
    large = cv2.resize(map_, (side, side))
    spread = large.max() - large.min()
    cam = (large - large.min()) / spread if spread else np.zeros_like(large)
    levels = (cam * 255).astype(np.uint8)
    contours = contours_of(levels, tau, cv2.THRESH_TOZERO)
    box = [0, 0, 1, 1]
    if contours:
        x, y, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
        box = [x, y, x + width, y + height]
    return any(pixel_iou(box, [min(int(v), side - 1) for v in truth]) >= 0.5 for truth in boxes)


def maxboxacc_ious(map_: np.ndarray, boxes, side: int, taus, all_contours: bool) -> list[float]:
    cam = cv2.resize(map_.astype(np.float64), (side, side), interpolation=cv2.INTER_CUBIC)
    if np.isnan(cam).any() or cam.min() == cam.max():
        cam = np.zeros_like(cam)
    else:
        cam -= cam.min()
        cam /= cam.max()
    levels = (cam * 255).astype(np.uint8)
    found = []
    for tau in taus:
        contours = contours_of(levels, tau, cv2.THRESH_BINARY)
        if contours and not all_contours:
            contours = [max(contours, key=cv2.contourArea)]
        rectangles = [cv2.boundingRect(contour) for contour in contours]
        estimated = [[x, y, min(x + w, side - 1), min(y + h, side - 1)] for x, y, w, h in rectangles]
        truths = [[int(v) for v in truth] for truth in boxes]
        found.append(max(pixel_iou(box, truth) for box in estimated or [[0, 0, 0, 0]] for truth in truths))
    return found


COUNT, CLASSES, LARGE = 20, 7, 24


@pytest.fixture(scope="module")
def images():
    """Twenty images of seven classes: logits, the maps of all classes, labels, and one to three true boxes."""
    rng = np.random.default_rng(3)
    logits = rng.integers(0, 4, (COUNT, CLASSES)).astype(np.float32)
    maps = np.maximum(rng.normal(0.3, 1, (COUNT, CLASSES, 5, 5)), 0).astype(np.float32)
    labels = rng.integers(0, CLASSES, COUNT)
    logits[np.arange(COUNT), labels] += rng.integers(-1, 3, COUNT)
    maps[3, labels[3]] = 0
    boxes = []
    for number in rng.integers(1, 4, COUNT):
        corners = rng.uniform(0, 14, (number, 2))
        boxes.append([(*corner, *np.minimum(corner + rng.uniform(5, 20, 2), LARGE)) for corner in corners])
    return logits, maps, labels, boxes


def test_tscam_is_its_definition(images) -> None:
    """Every one of the five predicted classes with the map of its own, as the definition has it."""
    logits, maps, labels, boxes = images
    part = Part(logits, maps[np.arange(COUNT), labels], labels, boxes)
    curves = curves_from_parts(TSCAM, [part], LARGE, TSCAM.taus)
    ranked = [sorted(range(CLASSES), key=lambda c: (-row[c], c)) for row in logits.tolist()]
    for k, tau in enumerate(TSCAM.taus):
        counts = {"gt_known_loc": 0, "top1_loc": 0, "top5_loc": 0}
        for some, label, truths, order in zip(maps, labels, boxes, ranked, strict=True):
            counts["gt_known_loc"] += tscam_right(some[label], truths, LARGE, tau)
            for key, first in (("top1_loc", 1), ("top5_loc", 5)):
                counts[key] += any(c == label and tscam_right(some[c], truths, LARGE, tau) for c in order[:first])
        assert {key: rates[k] for key, rates in curves.rates.items()} == {key: 5 * n for key, n in counts.items()}
    assert curves.rates["top1_loc"].max() < curves.rates["top5_loc"].max() < curves.rates["gt_known_loc"].max()
    assert curves.top1 == 5 * sum(order[0] == label for order, label in zip(ranked, labels, strict=True))
    assert curves.top5 == 5 * sum(label in order[:5] for order, label in zip(ranked, labels, strict=True))


@pytest.mark.parametrize("protocol", [MAXBOXACC, MAXBOXACCV2])
def test_maxboxacc_is_its_definition(protocol: Protocol, images) -> None:
    """At each of the 1000 thresholds, all of which are looked at one by one."""
    logits, maps, labels, boxes = images
    true = maps[np.arange(COUNT), labels]
    curves = curves_from_parts(protocol, [Part(logits, true, labels, boxes)], LARGE, protocol.taus)
    taus, every = np.arange(0, 1, 0.001), protocol is MAXBOXACCV2
    ious = np.array([maxboxacc_ious(*image, LARGE, taus, every) for image in zip(true, boxes, strict=True)])
    needed = {MAXBOXACC: [0.5], MAXBOXACCV2: [0.3, 0.5, 0.7]}[protocol]
    for rates, iou in zip(curves.rates.values(), needed, strict=True):
        assert rates.tolist() == (5 * (ious >= iou).sum(0)).tolist()
        assert 0 < rates.max() > rates.min()
    best = [curves.at(key, tau) for key, tau in curves.best_taus().items()]
    assert best == [5 * (ious >= iou).sum(0).max() for iou in needed]


def test_parts_add_up(images) -> None:
    logits, maps, labels, boxes = images
    true = maps[np.arange(COUNT), labels]
    whole = curves_from_parts(TSCAM, [Part(logits, true, labels, boxes)], LARGE, TSCAM.taus)
    pieces = [Part(logits[k : k + 3], true[k : k + 3], labels[k : k + 3], boxes[k : k + 3]) for k in range(0, COUNT, 3)]
    apart = curves_from_parts(TSCAM, iter(pieces), LARGE, TSCAM.taus)
    assert (apart.images, apart.top1, apart.top5, apart.constant_maps) == (
        whole.images,
        whole.top1,
        whole.top5,
        whole.constant_maps,
    )
    for key, rates in whole.rates.items():
        assert apart.rates[key].tolist() == rates.tolist()
