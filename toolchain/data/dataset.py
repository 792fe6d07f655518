"""What a data set is to the rest of the project."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from toolchain.preprocessing import Box

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """One labelled image, resized and cropped to the network's input.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        label: class index.
        box: of the labelled object, in pixels of `image`. For evaluation: training never reads it.
        name: file name or index, for messages.
    """

    image: NDArray[np.uint8]
    label: int
    box: Box
    name: str


class DataSet(Protocol):
    """A finite sequence of samples; the same index gives the same sample every time."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
