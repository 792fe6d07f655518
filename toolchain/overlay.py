"""Pictures of a localization: the map as heat over the image, and boxes that can be told apart without colour."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolchain.preprocessing import Box

Pixels = NDArray[np.uint8]
BoxName = Literal["truth", "fp32", "int8", "found"]
Point = tuple[float, float]

HEAT_OPACITY = 0.55
LINE_SHARE = 1 / 96
"""Line width as a share of the image's side."""
CASING = (16, 16, 20)
"""Drawn a little wider under every line, so that it shows on any background."""


@dataclass(frozen=True)
class Pen:
    """How a box is drawn.

    Attributes:
        colour: RGB.
        dash, gap: lengths in line widths; without a gap the line is solid.
    """

    colour: tuple[int, int, int]
    dash: float = 0
    gap: float = 0


PENS: Mapping[BoxName, Pen] = {
    "truth": Pen((255, 255, 255)),
    "fp32": Pen((86, 214, 255), dash=4, gap=3.5),
    "int8": Pen((190, 255, 90), dash=0.5, gap=3),
    "found": Pen((190, 255, 90)),
}


def heat(image: Pixels, map_: NDArray[np.float32]) -> Pixels:
    """A map over its image, dark where it is lowest and bright where it is highest.

    Args:
        image: (S, S, 3) RGB.
        map_: (h, w), any scale. One that is constant tells nothing, and is dark everywhere.
    """
    height, width = image.shape[:2]
    large = cv2.resize(map_.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    low, high = float(large.min()), float(large.max())
    levels = (255 * (large - low) / (high - low if high > low else 1)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.addWeighted(colours, HEAT_OPACITY, image, 1 - HEAT_OPACITY, 0), np.uint8)


def boxed(image: Pixels, boxes: Mapping[BoxName, Box]) -> Pixels:
    """A copy with boxes drawn in the order given: truth solid, FP32 dashed, INT8 dotted."""
    canvas = np.ascontiguousarray(image).copy()
    for name, box in boxes.items():
        _draw(canvas, box, PENS[name])
    return canvas


def localized(image: Pixels, window: Box, map_: NDArray[np.float32], box: Box) -> Pixels:
    """What a localizer found in an image of any size: the map over the part that it saw, and the box.

    Args:
        image: (H, W, 3) RGB.
        window: the part that the map covers, pixels of the image.
        map_: (h, w).
        box: pixels of the image.
    """
    canvas = image.copy()
    left, top, right, bottom = (round(v) for v in window)
    canvas[top:bottom, left:right] = heat(image[top:bottom, left:right], map_)
    return boxed(canvas, {"found": box})


def enlarged(image: Pixels, factor: int) -> Pixels:
    """The image `factor` times as large."""
    if factor == 1:
        return image
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8)


def png_bytes(image: Pixels) -> bytes:
    """The image as a PNG file."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw(canvas: Pixels, box: Box, pen: Pen) -> None:
    width = max(2, round(min(canvas.shape[:2]) * LINE_SHARE))
    sides = pairwise(_corners(canvas, box, width))
    dashes = [dash for start, end in sides for dash in _dashes(start, end, pen.dash * width, pen.gap * width)]
    for colour, thickness in ((CASING, width + 2), (pen.colour, width)):
        for start, end in dashes:
            cv2.line(canvas, _pixel(start), _pixel(end), colour, thickness)


def _corners(canvas: Pixels, box: Box, width: int) -> list[Point]:
    """The box's outline as a closed line, moved inwards where it would be cut off at the image's edge."""
    inset = width // 2
    last_x, last_y = canvas.shape[1] - 1 - inset, canvas.shape[0] - 1 - inset
    # A box ends before x1, y1: its last pixel is one less.
    x0, x1 = (float(np.clip(v, inset, last_x)) for v in (box[0], box[2] - 1))
    y0, y1 = (float(np.clip(v, inset, last_y)) for v in (box[1], box[3] - 1))
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]


def _dashes(start: Point, end: Point, dash: float, gap: float) -> list[tuple[Point, Point]]:
    """A line cut into dashes that begin and end it, so that corners stay whole; without a gap it stays solid."""
    length = abs(end[0] - start[0]) + abs(end[1] - start[1])
    gaps = round((length - dash) / (dash + gap)) if gap else 0
    if gaps < 1:
        return [(start, end)]
    period = (length - dash) / gaps
    along = [(k * period / length, (k * period + dash) / length) for k in range(gaps + 1)]
    return [(_between(start, end, a), _between(start, end, b)) for a, b in along]


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _pixel(point: Point) -> tuple[int, int]:
    return round(point[0]), round(point[1])
