"""True boxes as lists write them: read, and held against the size of their image."""

import math
from collections.abc import Iterable, Sequence

from toolchain.preprocessing import Box

Size = tuple[int, int]
"""Width and height, pixels."""

PIXELS_BEYOND = 1.0
"""Some lists count the first pixel as 0 and some as 1, CUB does both: a box may end this far outside of its image."""


def finite(text: str) -> float:
    """A number.

    Raises:
        ValueError: none, or an infinite one.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def boxes_from_words(words: Sequence[str]) -> tuple[Box, ...]:
    """`x0 y0 x1 y1`, once or several times over.

    Raises:
        ValueError: no numbers, or not four for each box.
    """
    numbers = [finite(word) for word in words]
    if not numbers or len(numbers) % 4:
        raise ValueError
    return tuple((numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3]) for i in range(0, len(numbers), 4))


def fault_of_box(box: Box, size: Size) -> str | None:
    """What is wrong with a box of an image of this size, as the end of a sentence that begins with the box."""
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return "is empty"
    if min(x0, y0) < -PIXELS_BEYOND or x1 > size[0] + PIXELS_BEYOND or y1 > size[1] + PIXELS_BEYOND:
        return f"reaches out of its image of {size[0]} x {size[1]} pixels"
    return None


def unfit_boxes(where: str, image: str, boxes: Iterable[Box], size: Size) -> list[str]:
    """Problems: boxes that do not fit their image, in the list and line `where`."""
    faults = [(box, fault_of_box(box, size)) for box in boxes]
    return [f"{where}: the box {' '.join(f'{v:g}' for v in box)} of {image} {fault}." for box, fault in faults if fault]
