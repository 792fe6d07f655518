"""Small data sets made by hand: every image is painted in a number of its own, so that it is known again."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolchain.data.dataset import DataSet, Sample
from toolchain.data.sources import open_data
from toolchain.errors import DataError
from toolchain.preprocessing import Preprocessing

# 60 x 40 halves to 30 x 20, and the crop of 16 begins at (7, 2).
SIZE = (60, 40)
PREPROCESSING = Preprocessing(16, 20, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def paint(file: Path, number: int) -> None:
    """An image of one colour; in PNG, whatever its name: no number is lost to compression."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (number, 0, 0)).save(file, "PNG")


def numbers(data: DataSet) -> list[int]:
    """Which images a split holds."""
    return [int(data[index].image[0, 0, 0]) for index in range(len(data))]


def labels(data: DataSet) -> list[int]:
    return [data[index].label for index in range(len(data))]


def write(file: Path, lines: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def append_line(file: Path, line: str) -> None:
    write(file, [*file.read_text().splitlines(), line])


def change_line(file: Path, number: int, line: str | None) -> None:
    """Replace a line, counted from 1; None removes it."""
    lines = file.read_text().splitlines()
    lines[number - 1 : number] = [] if line is None else [line]
    write(file, lines)


def problems_of(spec: str, split: str = "train") -> list[str]:
    with pytest.raises(DataError) as caught:
        open_data(spec, split, PREPROCESSING)
    assert "cannot be used as it is: mend" in str(caught.value)
    return list(caught.value.problems)


class Counted:
    """Images of one pixel; the pixel is the index, and the name says which process drew it."""

    class_names = ("even", "odd")

    def __init__(
        self, size: int, log: Path | None = None, broken: int | None = None, deadly: int | None = None
    ) -> None:
        """Each index drawn is a file in the folder `log`; one index is `broken`, and one ends the process."""
        self._size, self._log, self._broken, self._deadly = size, log, broken, deadly

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Sample:
        if index == self._broken:
            raise DataError(f"image {index} is broken: mend it.", ["it has no pixels."])
        if index == self._deadly:
            os._exit(1)
        if self._log:
            (self._log / str(index)).touch()
        pixel = np.array([index // 256, index % 256, 0], np.uint8).reshape(1, 1, 3)
        return Sample(pixel, index % 2, ((0, 0, 1, 1),) * (index % 3), str(os.getpid()))
