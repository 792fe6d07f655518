"""From an image file to the network's input, and boxes along with it. The same code for training and deployment."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from toolchain.errors import DataError

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels, end exclusive."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop and normalization.

    Attributes:
        image_size: side S of the square network input, pixels.
        resize: length of the short side before the centre crop, pixels; None: the whole image is squashed to S x S.
        mean: per RGB channel, of pixels in [0, 1].
        std: likewise.
    """

    image_size: int
    resize: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def crop(self, image: Image.Image) -> NDArray[np.uint8]:
        """An image of any size as (S, S, 3) uint8 RGB: bilinear resize, centre crop."""
        size, left, top = self._window(image.size)
        image = image.convert("RGB")
        if size != image.size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(image.crop((left, top, left + self.image_size, top + self.image_size)))

    def crop_box(self, box: Box, size: tuple[int, int]) -> Box:
        """A box of an image of `size` (width, height) in the coordinates of `crop`'s result, clipped to it."""
        _, left, top = self._window(size)
        scales = self._scales(size) * 2
        x0, y0, x1, y1 = (
            float(np.clip(v * scale - offset, 0, self.image_size))
            for v, scale, offset in zip(box, scales, (left, top) * 2, strict=True)
        )
        return x0, y0, x1, y1

    def uncrop_box(self, box: Box, size: tuple[int, int]) -> Box:
        """The inverse of `crop_box`, clipped to the image."""
        _, left, top = self._window(size)
        scales = self._scales(size) * 2
        x0, y0, x1, y1 = (
            float(np.clip((v + offset) / scale, 0, limit))
            for v, scale, offset, limit in zip(box, scales, (left, top) * 2, size * 2, strict=True)
        )
        return x0, y0, x1, y1

    def normalize(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 -> (B, 3, S, S) float32, `(x / 255 - mean) / std`."""
        planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
        column = (1, 3, 1, 1)
        planes -= (np.asarray(self.mean, np.float32) * 255).reshape(column)
        planes /= (np.asarray(self.std, np.float32) * 255).reshape(column)
        return planes

    @property
    def largest(self) -> float:
        """Largest magnitude of a normalized pixel, whatever the image: black or white in one of the channels."""
        ends = [((level - mean) / std) for mean, std in zip(self.mean, self.std, strict=True) for level in (0, 1)]
        return max(map(abs, ends))

    def _scales(self, size: tuple[int, int]) -> tuple[float, float]:
        """Horizontal and vertical: one and the same unless the image is squashed."""
        if self.resize is None:
            return self.image_size / size[0], self.image_size / size[1]
        return (self.resize / min(size),) * 2

    def _window(self, size: tuple[int, int]) -> tuple[tuple[int, int], int, int]:
        """Size after the resize, and the corner of the crop in it."""
        across, down = self._scales(size)
        resized = round(size[0] * across), round(size[1] * down)
        return resized, (resized[0] - self.image_size) // 2, (resized[1] - self.image_size) // 2


def imagenet(image_size: int) -> Preprocessing:
    """What models of photographs are trained with, the release's too: at 224 pixels the short side becomes 256."""
    return Preprocessing(image_size, image_size * 8 // 7, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def read_image(path: Path) -> Image.Image:
    """An image file, decoded.

    Raises:
        DataError: missing, or no image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: check the path.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no readable image ({error}): replace or remove it.") from error
