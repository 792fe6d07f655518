"""Where calibration images come from: a folder (synthetic or anybody's), noise, or the training images themselves."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calib import image_set
from toolchain.card import card_from_metadata
from toolchain.data.sources import files_of, open_data
from toolchain.errors import UsageError
from toolchain.evaluation import batches
from toolchain.preprocessing import Preprocessing, imagenet

if TYPE_CHECKING:
    from exporters.image_input import ImageInput

Floats = NDArray[np.float32]
BATCH = 4
"""Images observed at once: bounds memory, and the ranges do not depend on it."""
NOISE = "noise"
NOISE_IMAGES = 128


@dataclass(frozen=True)
class CalibrationSource:
    """Images to observe ranges on.

    Attributes:
        description: in words, for tables.
        count: number of images, at most.
        parameters: what decides the images, for the sidecar.
        images: preprocessing -> normalized batches (B, 3, S, S).
        inputs: files the images come from.
    """

    description: str
    count: int
    parameters: Mapping[str, Any]
    images: Callable[[Preprocessing], Iterator[Floats]]
    inputs: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Stated:
    """What the user says about the images of a model that does not say it itself.

    Attributes:
        mean: per RGB channel, of pixels in [0, 1].
        std: likewise.
        image_size: side of the square input, pixels; needed where the graph leaves it open.
    """

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    image_size: int | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """What was said, for the sidecar."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def window_of(metadata: Mapping[str, str], taken: "ImageInput", stated: Stated, model: Path) -> Preprocessing:
    """From an image file to the input of a model: what its metadata says, or else what the user does.

    Of a foreign model nobody knows the crop, so it gets the usual one: the short side is brought to 8/7 of the input,
    then the center is taken.

    Args:
        metadata: of the model; a localizer of ours carries its preprocessing there.
        taken: the model's image input.
        stated: by the user.
        model: its file, for the message.

    Raises:
        ModelError: metadata of ours that cannot be read.
        UsageError: something is said twice, or not at all, or cannot be.
    """
    if "preprocessing" in metadata:
        if stated.parameters:
            raise UsageError(
                f"{model} says itself how its images are prepared: leave out mean, standard deviation and image size."
            )
        return card_from_metadata(metadata, str(model)).preprocessing
    if stated.mean is None or stated.std is None:
        raise UsageError(
            f"{model} does not say how its images are normalized: give --mean and --std, per channel of pixels in "
            "[0, 1], such as --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225."
        )
    if min(stated.std) <= 0:
        raise UsageError(f"--std {' '.join(map(str, stated.std))} cannot be: a standard deviation is over 0.")
    if stated.image_size is not None and (stated.image_size < 1 or taken.size not in (None, stated.image_size)):
        takes = taken.size or "at least 1"
        raise UsageError(f"--image-size {stated.image_size} cannot be: input '{taken.name}' of {model} takes {takes}.")
    size = taken.size or stated.image_size
    if size is None:
        raise UsageError(f"Input '{taken.name}' of {model} takes images of any size: choose one with --image-size.")
    return Preprocessing(size, imagenet(size).resize, stated.mean, stated.std)


def source_named(images: str | None, count: int | None, seed: int) -> CalibrationSource:
    """What `--images` names: `noise`, of which 128 unless a count is given, or a folder.

    Raises:
        DataError: no folder, or no image in it.
        UsageError: nothing was named, or a count under 1.
    """
    if images is None:
        raise UsageError("Name what the ranges come from: calibration images with --images, or a file with --ranges.")
    if images == NOISE:
        return noise(NOISE_IMAGES if count is None else count, seed)
    return folder(Path(images), count)


def folder(path: Path, limit: int | None = None) -> CalibrationSource:
    """The images in a folder; a synthetic set is checked against its sidecar.

    Raises:
        DataError: no folder, or no image in it.
        UsageError: a limit under 1.
    """
    count = len(image_set.listed(path, limit))

    def images(preprocessing: Preprocessing) -> Iterator[Floats]:
        found = image_set.stream(path, preprocessing.image_size, preprocessing.crop, limit=limit)
        while batch := [*islice(found, BATCH)]:
            yield preprocessing.normalize(np.stack(batch))

    return CalibrationSource(f"images in {path.name}", count, {"limit": limit}, images, {"images": path})


def noise(count: int, seed: int) -> CalibrationSource:
    """Standard-normal images in the normalized space: the arm that shows what calibration is worth.

    Raises:
        UsageError: a count under 1.
    """
    if count < 1:
        raise UsageError(f"count is {count}: take at least 1 image of noise.")

    def images(preprocessing: Preprocessing) -> Iterator[Floats]:
        return image_set.noise_batches(count, preprocessing.image_size, seed, BATCH)

    return CalibrationSource(f"{count} noise images", count, {"images": NOISE, "count": count, "seed": seed}, images)


def training_images(data: str, count: int, window: Preprocessing) -> CalibrationSource:
    """Real training images: the arm that shows what the synthetic ones are measured against."""

    def images(preprocessing: Preprocessing) -> Iterator[Floats]:
        real = open_data(data, "train", preprocessing, count)
        return (batch for batch, _, _ in batches(real, preprocessing, BATCH))

    parameters = {"images": "training", "data": data, "count": count}
    return CalibrationSource(f"{count} real training images", count, parameters, images, files_of(data, window))
