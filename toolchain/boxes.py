"""From a localization map to boxes, and how far boxes overlap (spec/lctr.md, "Evaluation protocols")."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from toolchain.preprocessing import Box

Boxes = NDArray[np.float64]
"""(n, 4): x0, y0, x1, y1 in pixels of the network's input."""
Levels = NDArray[np.uint8]
"""(S, S): a map at the size of the network's input, min-max to 0..255; zero throughout where the map tells nothing."""

PROTOCOL = "lctr"
IOU_NEEDED = 0.5


@dataclass(frozen=True)
class BoxRules:
    """How boxes are read off a map, and compared. The defaults are protocol `lctr`'s.

    Binary and to-zero thresholds are not told apart: they leave the same pixels, and a contour sees no more than that.

    Attributes:
        interpolation: OpenCV's, from the map to the size of the network's input.
        precision: of that and of min-max.
        all_contours: a box around every contour; False: around the one of largest area alone.
        inside: x1 and y1 are S - 1 at most, the last pixel; False: S, the pixel after it.
        empty: the box where nothing is above the threshold; None: the whole image.
        inclusive: a box includes the pixels x1 and y1, so that IoU counts one more along each side.
    """

    interpolation: int = cv2.INTER_LINEAR
    precision: type[np.float32] | type[np.float64] = np.float32
    all_contours: bool = False
    inside: bool = False
    empty: Box | None = None
    inclusive: bool = False


LCTR_BOXES = BoxRules()


@dataclass(frozen=True)
class MapBox:
    """A box read off a map.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the network's input.
        constant: the map told nothing (all values equal), and the box is the whole image for want of a better one.
    """

    box: Box
    constant: bool


def box_from_map(map_: NDArray[np.float32], image_size: int, tau: float) -> MapBox:
    """The bounding box of the largest connected region above a threshold, by protocol `lctr`.

    Bilinear resize, min-max, uint8, strictly above `int(tau * max)`, largest contour by area.

    Args:
        map_: (h, w), any scale.
        image_size: side of the square network input, pixels.
        tau: threshold, fraction of the maximum.
    """
    levels = levels_from_map(map_, image_size, LCTR_BOXES)
    x0, y0, x1, y1 = boxes_above(levels, int(tau * levels.max()), LCTR_BOXES)[0].tolist()
    return MapBox((x0, y0, x1, y1), constant=not levels.any())


def levels_from_map(map_: NDArray[np.float32], image_size: int, rules: BoxRules) -> Levels:
    """A map (h, w) of any scale as levels; a map that is constant or holds NaN tells nothing.

    The release divides 0 by 0 there (`lctr`, `tscam`) or takes zeros, as here (`maxboxacc`).
    """
    large = cv2.resize(map_.astype(rules.precision), (image_size, image_size), interpolation=rules.interpolation)
    low, high = float(large.min()), float(large.max())
    # With NaN among the values both are NaN, and no comparison holds.
    if not high > low:
        return np.zeros(large.shape, np.uint8)
    return np.asarray(255 * ((large - low) / (high - low)), rules.precision).astype(np.uint8)


def boxes_above(levels: Levels, threshold: int, rules: BoxRules) -> Boxes:
    """The boxes around what is strictly above a threshold, at least one."""
    height, width = levels.shape
    _, mask = cv2.threshold(levels, threshold, 255, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return np.array([rules.empty or (0, 0, width, height)], np.float64)
    taken = contours if rules.all_contours else [max(contours, key=cv2.contourArea)]
    found = np.array([cv2.boundingRect(contour) for contour in taken], np.float64)
    found[:, 2:] += found[:, :2]
    if rules.inside:
        found[:, 2:] = np.minimum(found[:, 2:], (width - 1, height - 1))
    return found


def overlaps(first: Boxes, second: Boxes, *, inclusive: bool = False) -> NDArray[np.float64]:
    """Intersection over union of every box (n, 4) with every other (m, 4): (n, m).

    Args:
        first: x0, y0, x1, y1.
        second: likewise.
        inclusive: boxes include the pixels x1 and y1, so that 1 is added to every width and height.
    """
    one = 1 if inclusive else 0
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.maximum(high - low + one, 0).prod(2)
    area, other_area = ((boxes[:, 2:] - boxes[:, :2] + one).prod(1) for boxes in (first, second))
    union = area[:, None] + other_area - shared
    found: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, without the +1 of pixel-inclusive protocols."""
    return float(overlaps(np.array([first], np.float64), np.array([second], np.float64))[0, 0])


def overlaps_by_tau(levels: Levels, truths: Boxes, taus: NDArray[np.float64], rules: BoxRules) -> NDArray[np.float64]:
    """For every threshold, the largest IoU that a box read off the map has with a true one.

    Thresholds between the same two levels leave the same pixels: there are at most 256 masks to look at, however many
    thresholds.

    Args:
        levels: (S, S).
        truths: (m, 4), at least one.
        taus: (T,), fractions of the maximum.
        rules: of the protocol.

    Returns:
        (T,).
    """
    thresholds = (taus * int(levels.max())).astype(np.int64)
    occurring = np.flatnonzero(np.bincount(levels.ravel(), minlength=256))
    lowest_above = np.searchsorted(occurring, thresholds, side="right")
    _, firsts, mask_of_tau = np.unique(lowest_above, return_index=True, return_inverse=True)
    found = [boxes_above(levels, int(threshold), rules) for threshold in thresholds[firsts]]
    best = overlaps(np.concatenate(found), truths, inclusive=rules.inclusive).max(1)
    starts = np.cumsum([0, *(len(boxes) for boxes in found[:-1])])
    by_mask: NDArray[np.float64] = np.maximum.reduceat(best, starts)
    return by_mask[mask_of_tau]
