"""`shapes`: an infinite procedural data set for weakly supervised localization, with exact boxes.

An object is a body and an emblem. The body is large, tilted, of any outline; its texture, and loosely its hue, belong
to two of the twelve classes. The emblem is small, sits near one end of the body and belongs to one class. So the
emblem alone names the class, and its box is far too small: a classifier that looks only there localizes badly. The
background is coloured noise with clutter in front of it: outlines like the bodies' in any colour, and thin lines.

Each image is drawn from its own stream `[seed of the split, index]`: the splits never share an image, and the same
index gives the same image every time.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from toolchain.data.dataset import Sample
from toolchain.errors import UsageError
from toolchain.preprocessing import Preprocessing

Plane = NDArray[np.floating[Any]]
Field = Callable[[Plane, Plane], Plane]
"""Two coordinates -> a value, pixel by pixel."""
Random = np.random.Generator

SPLIT_SEEDS = {"train": 1, "val": 2, "test": 3}
SPLIT_SIZES = {"train": 16_000, "val": 600, "test": 2_400}
IMAGE_SIZE = 112
CONTRAST = 0.38
"""Least difference in brightness of an emblem's two colours, and of a texture's. At 0.3 one emblem in fifteen could not
be told from another: its ink was too near its paper."""
PIXEL_GRID = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float32)
PREPROCESSING = Preprocessing(IMAGE_SIZE, IMAGE_SIZE, mean=(0.45, 0.45, 0.45), std=(0.25, 0.25, 0.25))

# Textures: body coordinates (u along, v across; in units of the short half-axis) -> which of two colours, in [-1, 1].
TEXTURES: dict[str, Field] = {
    "stripes": lambda u, v: np.sin(9 * u),
    "bars": lambda u, v: np.sin(9 * v),
    "checks": lambda u, v: 1.6 * np.sin(7 * u) * np.sin(7 * v),
    "rings": lambda u, v: np.sin(9 * np.hypot(u, v)),
    "waves": lambda u, v: np.sin(8 * u + 2.4 * np.sin(5 * v)),
    "dots": lambda u, v: 3 * (np.cos(8 * u) + np.cos(8 * v)) - 2.4,
}

# Emblems: coordinates in [-1, 1] -> ink where positive.
EMBLEMS: dict[str, Field] = {
    "cross": lambda x, y: 0.3 - np.minimum(abs(x), abs(y)),
    "ring": lambda x, y: 0.25 - abs(np.hypot(x, y) - 0.65),
    "moon": lambda x, y: np.minimum(0.9 - np.hypot(x, y), np.hypot(x - 0.5, y) - 0.7),
    "wedge": lambda x, y: np.minimum(0.7 - y, y + 0.8 - 2 * abs(x)),
    "frame": lambda x, y: np.maximum(abs(x), abs(y)) - 0.55,
    "bolt": lambda x, y: 0.28 - abs(x - 0.5 * np.sign(y) * (1 - abs(y))),
    "twins": lambda x, y: 0.35 - np.hypot(abs(x) - 0.5, y),
    "tee": lambda x, y: np.maximum(np.minimum(0.25 - abs(x), 0.9 - abs(y)), -0.4 - y),
    "star": lambda x, y: 0.5 + 0.35 * np.cos(5 * np.arctan2(y, x)) - np.hypot(x, y),
    "saw": lambda x, y: 0.3 * np.sign(np.sin(9 * x)) - y,
    "diagonal": lambda x, y: 0.35 - abs(x - y),
    "eye": lambda x, y: np.maximum(0.3 - np.hypot(x, y), 0.12 - abs(np.hypot(x, y) - 0.8)),
}

# Outlines: body coordinates scaled to [-1, 1] along both axes -> inside where positive.
OUTLINES: tuple[Field, ...] = (
    lambda x, y: 1 - np.hypot(x, y),
    lambda x, y: 1 - (x**4 + y**4) ** 0.25,
    lambda x, y: 1 - np.maximum(abs(x), abs(y) * (1.6 - 0.6 * x)),
    lambda x, y: 1 - np.hypot(x, y * (1 + 0.5 * np.cos(3 * x))),
    lambda x, y: 1 - np.maximum(abs(x), abs(y) + 0.3 * abs(x)),
)


@dataclass(frozen=True)
class ShapeClass:
    """A class is a texture, shared with one other class, and an emblem of its own."""

    texture: str
    emblem: str

    @property
    def name(self) -> str:
        """`texture-emblem`."""
        return f"{self.texture}-{self.emblem}"


CLASSES = tuple(ShapeClass(list(TEXTURES)[i % len(TEXTURES)], emblem) for i, emblem in enumerate(EMBLEMS))


@dataclass(frozen=True)
class Scene:
    """A drawn image and the masks it was drawn with.

    Attributes:
        image: (S, S, 3) uint8.
        label: index into `CLASSES`.
        body: (S, S) bool, the whole object, emblem included.
        emblem: (S, S) bool.
    """

    image: NDArray[np.uint8]
    label: int
    body: NDArray[np.bool_]
    emblem: NDArray[np.bool_]


class Shapes:
    """A split of `shapes` as a data set.

    Args:
        split: `train`, `val` or `test`.
        size: number of images; a longer one begins with the images of a shorter one.

    Raises:
        UsageError: no such split, or a size under 1.
    """

    class_names = tuple(c.name for c in CLASSES)

    def __init__(self, split: str, size: int | None = None) -> None:
        if split not in SPLIT_SEEDS:
            raise UsageError(f"unknown split '{split}' of shapes: choose one of {', '.join(SPLIT_SEEDS)}.")
        if size is not None and size < 1:
            raise UsageError(f"{size} images of shapes asked for: ask for at least 1.")
        self._split = split
        self._size = size or SPLIT_SIZES[split]

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._size:
            raise IndexError(index)
        scene = draw_scene(np.random.default_rng([SPLIT_SEEDS[self._split], index]), index % len(CLASSES))
        return Sample(scene.image, scene.label, (mask_box(scene.body),), f"{self._split}/{index}")


def mask_box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Smallest box around the set pixels of a mask: x0, y0, x1, y1, end exclusive."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def draw_scene(rng: Random, label: int) -> Scene:
    """One image of the class `label`, wholly decided by `rng`."""
    canvas = _background(rng)
    for _ in range(rng.integers(4, 10)):
        _draw_clutter(rng, canvas)
    body, emblem = _draw_object(rng, canvas, CLASSES[label])
    # Light differs from image to image far more than within one.
    canvas = (canvas - 0.5) * rng.uniform(0.5, 1.25) + 0.5 + rng.uniform(-0.18, 0.18)
    canvas += rng.normal(0, 0.02, canvas.shape).astype(np.float32)
    return Scene((np.clip(canvas, 0, 1) * 255).astype(np.uint8), label, body, emblem)


def _background(rng: Random) -> Plane:
    canvas = np.tile(rng.uniform(0.25, 0.75, 3).astype(np.float32), (IMAGE_SIZE, IMAGE_SIZE, 1))
    for cells, amplitude in ((3, 0.16), (9, 0.10), (28, 0.07)):
        noise = rng.normal(0, amplitude, (cells, cells, 3)).astype(np.float32)
        canvas += cv2.resize(noise, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_CUBIC)
    return canvas


def _body_coordinates(rng: Random, half_length: float, aspect: float) -> tuple[Plane, Plane]:
    """Pixel grid in the axes of a rotated body that lies inside the frame, in units of its short half-axis."""
    angle = rng.uniform(-0.9, 0.9)
    cosine, sine = np.cos(angle), np.sin(angle)
    half_width = half_length / aspect
    reach = np.hypot(half_length * np.array([cosine, sine]), half_width * np.array([sine, cosine]))
    x, y = rng.uniform(reach, np.maximum(reach + 1e-6, IMAGE_SIZE - 1 - reach))
    rows, columns = PIXEL_GRID
    along = ((columns - x) * cosine + (rows - y) * sine) / half_width
    across = (-(columns - x) * sine + (rows - y) * cosine) / half_width
    return along.astype(np.float32), across.astype(np.float32)


def _draw_clutter(rng: Random, canvas: Plane) -> None:
    if rng.random() < 0.4:
        ends = rng.integers(0, IMAGE_SIZE, (2, 2))
        cv2.line(canvas, ends[0].tolist(), ends[1].tolist(), rng.random(3).tolist(), int(rng.integers(1, 4)))
        return
    aspect = rng.uniform(1, 2.2)
    along, across = _body_coordinates(rng, rng.uniform(5, 22), aspect)
    inside = OUTLINES[rng.integers(len(OUTLINES))](along / aspect, across) > 0
    gradient = (0.5 + 0.5 * np.clip(along / aspect, -1, 1) * rng.uniform(0, 1))[..., None]
    first, second = rng.random((2, 3)).astype(np.float32)
    canvas[inside] = (first * gradient + second * (1 - gradient))[inside]


def _draw_object(rng: Random, canvas: Plane, kind: ShapeClass) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    aspect = rng.uniform(1.15, 1.9)
    half_length = rng.uniform(26, 50)
    along, across = _body_coordinates(rng, half_length, aspect)
    body = OUTLINES[rng.integers(len(OUTLINES))](along / aspect, across) > 0
    first, second = _two_colours(rng, hue=list(TEXTURES).index(kind.texture) / len(TEXTURES), stray=0.04)
    ink, paper = _two_colours(rng, hue=list(EMBLEMS).index(kind.emblem) / len(EMBLEMS), stray=0.02)
    mix = np.clip(TEXTURES[kind.texture](along, across) * 2, -1, 1)[..., None] * 0.5 + 0.5
    canvas[body] = (first * mix + second * (1 - mix))[body]

    # In body units: a square of half-side 0.4 near the tip, or 9 pixels where that would be smaller.
    side = max(0.4, 9 / (half_length / aspect))
    x, y = (along - (aspect - 1.25 * side - 0.12)) / side, across / side
    emblem = (np.maximum(abs(x), abs(y)) < 1) & body
    drawn = (EMBLEMS[kind.emblem](x, y) > 0)[..., None]
    canvas[emblem] = np.where(drawn, ink, paper)[emblem]
    return body, emblem


def _two_colours(rng: Random, hue: float, stray: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A bright colour of about this hue, and any colour whose brightness differs from it by `CONTRAST` at least.

    A hue is no class: it strays, neighbours overlap, and clutter comes in every colour. But with colours that say
    nothing at all a small transformer sees only second-order structure, and was still at chance after twenty epochs.

    Args:
        rng: decides.
        hue: in the middle, fraction of the colour circle.
        stray: its standard deviation.
    """
    bright = _rgb((hue + rng.normal(0, stray)) % 1, rng.uniform(0.4, 1), rng.uniform(0.65, 1))
    while True:
        other = rng.random(3).astype(np.float32)
        if abs(bright.mean() - other.mean()) > CONTRAST:
            return bright, other


def _rgb(hue: float, saturation: float, value: float) -> NDArray[np.float32]:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)
