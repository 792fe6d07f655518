"""Image files of one split, decoded when they are asked for: what every data set on disk comes down to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.data.dataset import SPLITS, Sample
from toolchain.errors import DataError, UsageError
from toolchain.preprocessing import Box, Preprocessing, read_image


@dataclass(frozen=True, slots=True)
class Photo:
    """An image on disk.

    Attributes:
        path: below the folder of images.
        label: class index.
        boxes: pixels of the image on disk; empty where none are known.
    """

    path: str
    label: int
    boxes: tuple[Box, ...] = ()


class Photos:
    """Some images of a data set, in order. Pixels are decoded when an image is asked for, every time anew.

    Args:
        folder: where the paths of the photos begin.
        class_names: by class index.
        photos: in order.
        preprocessing: resize and crop; boxes follow both.
    """

    def __init__(
        self, folder: Path, class_names: Sequence[str], photos: Sequence[Photo], preprocessing: Preprocessing
    ) -> None:
        self.class_names = tuple(class_names)
        self._folder = folder
        self._photos = list(photos)
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`.

        Raises:
            IndexError: there is none.
            DataError: the file is gone or broken.
        """
        if not 0 <= index < len(self._photos):
            raise IndexError(index)
        photo = self._photos[index]
        image = read_image(self._folder / photo.path)
        boxes = tuple(self._preprocessing.crop_box(box, image.size) for box in photo.boxes)
        return Sample(self._preprocessing.crop(image), photo.label, boxes, photo.path)


def check_choice(place: Path, split: str, size: int | None) -> None:
    """Refuse a split or a number of images that cannot be meant, before anything is read.

    Raises:
        UsageError: no such split, or a size under 1.
    """
    if split not in SPLITS:
        raise UsageError(f"unknown split '{split}' of {place}: choose one of {', '.join(SPLITS)}.")
    if size is not None and size < 1:
        raise UsageError(f"{size} images of {place} asked for: ask for at least 1.")


def spread(place: Path, split: str, photos: Sequence[Photo], size: int | None) -> list[Photo]:
    """`size` photos at even distances, so that a list in the order of its classes gives some of each; None: all.

    Raises:
        DataError: there is none to take.
    """
    if not photos:
        raise DataError(f"{place} has no images in its split '{split}': choose another split or complete it.")
    count = min(size or len(photos), len(photos))
    return [photos[k * len(photos) // count] for k in range(count)]
