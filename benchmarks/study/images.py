"""The images of every arm: drawn from a data set or made by a method, kept in a folder and used again."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from calib.synthesis import Method, synthesize
from calib.teacher import Teacher
from toolchain.artifacts import writing
from toolchain.calibration import BATCH, CalibrationSource
from toolchain.data.dataset import DataSet
from toolchain.evaluation import Floats
from toolchain.finetuning.images import Images
from toolchain.preprocessing import Preprocessing


@dataclass(frozen=True)
class ImageSet:
    """Images for one arm and seed.

    Attributes:
        name: unique in the study.
        images: (N, S, S, 3) uint8 RGB.
        labels: (N,); of a method without labels: -1.
        seconds: that making them took; of drawn ones, too.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    seconds: float

    def source(self) -> CalibrationSource:
        """For calibration."""

        def images(window: Preprocessing) -> Iterator[Floats]:
            for start in range(0, len(self.images), BATCH):
                yield window.normalize(self.images[start : start + BATCH])

        return CalibrationSource(self.name, len(self.images), {"images": self.name}, images)

    def tensors(self, window: Preprocessing) -> Images:
        """For fine-tuning."""
        return Images(torch.from_numpy(window.normalize(self.images)), torch.from_numpy(self.labels))


def made(folder: Path, name: str, method: Method, teacher: Teacher, *, count: int, seed: int) -> ImageSet:
    """Synthetic images."""

    def make() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        found = synthesize(method, teacher, count=count, seed=seed)
        return found.images, np.full(count, -1) if found.labels is None else found.labels

    return _kept(folder, f"{name}-{count}-seed{seed}", make)


def drawn(folder: Path, name: str, opened: Callable[[], DataSet], count: int, seed: int) -> ImageSet:
    """Images of a data set, each at most once; it is not `opened` where they are kept already."""

    def make() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        data = opened()
        return _taken(data, np.random.default_rng(seed).permutation(len(data))[:count].tolist())

    return _kept(folder, f"{name}-{count}-seed{seed}", make)


def drawn_of_each_class(folder: Path, name: str, opened: Callable[[], DataSet], each: int, seed: int) -> ImageSet:
    """`each` images of every class of a data set: what class centers could be made of at the least."""

    def make() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        data = opened()
        wanted = dict.fromkeys(range(len(data.class_names)), each)
        rows = []
        for row in np.random.default_rng(seed).permutation(len(data)).tolist():
            label = data[row].label
            if wanted[label]:
                wanted[label] -= 1
                rows.append(row)
            if not any(wanted.values()):
                break
        return _taken(data, rows)

    return _kept(folder, f"{name}-{each}-of-each-seed{seed}", make)


def _taken(data: DataSet, rows: list[int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    samples = [data[row] for row in rows]
    return np.stack([sample.image for sample in samples]), np.array([sample.label for sample in samples])


def _kept(folder: Path, name: str, make: Callable[[], tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> ImageSet:
    path = folder / f"{name}.npz"
    if not path.exists():
        start = time.perf_counter()
        images, labels = make()
        seconds = time.perf_counter() - start
        with writing(path) as temporary:
            np.savez(temporary, images=images, labels=labels, seconds=seconds)
    with np.load(path) as held:
        return ImageSet(name, held["images"], held["labels"], float(held["seconds"]))
