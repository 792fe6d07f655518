"""What a data set is to the rest of the project."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from toolchain.errors import DataError
from toolchain.preprocessing import Box

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """One labelled image, resized and cropped to the network's input.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        label: class index.
        boxes: around the labelled objects, in pixels of `image`; empty where none are known. For evaluation: training
            never reads them.
        name: file name or index, for messages.
    """

    image: NDArray[np.uint8]
    label: int
    boxes: tuple[Box, ...]
    name: str

    @property
    def box(self) -> Box:
        """The first box: protocol `lctr` knows one per image.

        Raises:
            DataError: none is known.
        """
        if not self.boxes:
            raise DataError(f"image {self.name} has no box, and localization cannot be judged: use another split.")
        return self.boxes[0]


class DataSet(Protocol):
    """A finite sequence of samples; the same index gives the same sample every time."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
