"""From a localization map to a box, and how right a box is: protocol `lctr` (spec/lctr.md)."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from toolchain.preprocessing import Box

PROTOCOL = "lctr"
IOU_NEEDED = 0.5


@dataclass(frozen=True)
class MapBox:
    """A box read off a map.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the network's input.
        constant: the map told nothing (all values equal), and the box is the whole image for want of a better one.
    """

    box: Box
    constant: bool = False


def box_from_map(map_: NDArray[np.float32], image_size: int, tau: float) -> MapBox:
    """The bounding box of the largest connected region above a threshold.

    Bilinear resize, min-max, uint8, strictly above `int(tau * max)`, largest contour by area.

    Args:
        map_: (h, w), any scale.
        image_size: side of the square network input, pixels.
        tau: threshold, fraction of the maximum.
    """
    return _box_from_bytes(_as_bytes(map_, image_size), tau)


def boxes_by_tau(map_: NDArray[np.float32], image_size: int, taus: NDArray[np.float64]) -> list[MapBox]:
    """`box_from_map` at several thresholds; the map is resized once."""
    levels = _as_bytes(map_, image_size)
    return [_box_from_bytes(levels, float(tau)) for tau in taus]


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, without the +1 of pixel-inclusive protocols."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
    return shared / (sum(areas) - shared)


def _as_bytes(map_: NDArray[np.float32], image_size: int) -> NDArray[np.uint8] | int:
    """The map at image size in 0..255, or the image size alone where the map is constant (0/0 in the release)."""
    large = cv2.resize(map_.astype(np.float32), (image_size, image_size), interpolation=cv2.INTER_LINEAR)
    low, high = float(large.min()), float(large.max())
    if not high > low:
        return image_size
    return np.asarray(255 * ((large - low) / (high - low)), np.float32).astype(np.uint8)


def _box_from_bytes(levels: NDArray[np.uint8] | int, tau: float) -> MapBox:
    if isinstance(levels, int):
        return MapBox((0.0, 0.0, float(levels), float(levels)), constant=True)
    _, mask = cv2.threshold(levels, int(tau * levels.max()), 255, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return MapBox((0.0, 0.0, float(levels.shape[1]), float(levels.shape[0])))
    x, y, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
    return MapBox((float(x), float(y), float(x + width), float(y + height)))
