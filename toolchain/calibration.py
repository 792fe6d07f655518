"""Where calibration images come from: a folder (synthetic or anybody's), noise, or the training images themselves."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib import image_set
from toolchain.data.sources import files_of, open_data
from toolchain.evaluation import batches
from toolchain.preprocessing import Preprocessing

Floats = NDArray[np.float32]
BATCH = 4
"""Images observed at once: bounds memory, and the ranges do not depend on it."""


@dataclass(frozen=True)
class CalibrationSource:
    """Images to observe ranges on.

    Attributes:
        description: in words, for tables.
        count: number of images at most.
        parameters: what decides the images, for the sidecar.
        images: preprocessing -> normalized batches (B, 3, S, S).
        inputs: files the images come from.
    """

    description: str
    count: int
    parameters: Mapping[str, Any]
    images: Callable[[Preprocessing], Iterator[Floats]]
    inputs: Mapping[str, Path] = field(default_factory=dict)


def folder(path: Path, limit: int | None = None) -> CalibrationSource:
    """The images in a folder; a synthetic set is checked against its sidecar."""

    def images(preprocessing: Preprocessing) -> Iterator[Floats]:
        found = image_set.read(path, preprocessing.crop, limit=limit)
        return (preprocessing.normalize(found[i : i + BATCH]) for i in range(0, len(found), BATCH))

    return CalibrationSource(f"images in {path.name}", limit or 0, {"limit": limit}, images, {"images": path})


def noise(count: int, seed: int) -> CalibrationSource:
    """Standard-normal images in the normalized space: the arm that shows what calibration is worth."""

    def images(preprocessing: Preprocessing) -> Iterator[Floats]:
        found = image_set.noise(count, preprocessing.image_size, seed)
        return (found[i : i + BATCH] for i in range(0, count, BATCH))

    return CalibrationSource(f"{count} noise images", count, {"images": "noise", "count": count, "seed": seed}, images)


def training_images(data: str, count: int, window: Preprocessing) -> CalibrationSource:
    """Real training images: the arm that shows what the synthetic ones are measured against."""

    def images(preprocessing: Preprocessing) -> Iterator[Floats]:
        real = open_data(data, "train", preprocessing, count)
        return (batch for batch, _, _ in batches(real, preprocessing, BATCH))

    parameters = {"images": "training", "data": data, "count": count}
    return CalibrationSource(f"{count} real training images", count, parameters, images, files_of(data, window))
