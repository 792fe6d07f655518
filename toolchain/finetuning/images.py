"""The images of a fine-tuning, in memory, and the labels that are known of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calib import image_set
from toolchain.artifacts import read_sidecar
from toolchain.data.sources import open_data
from toolchain.evaluation import batches
from toolchain.preprocessing import Preprocessing


@dataclass(frozen=True)
class Images:
    """Images in memory.

    Attributes:
        pixels: (N, 3, S, S) float32, normalized.
        labels: (N,) int64; None: the teacher's predictions are taken for them.
    """

    pixels: Tensor
    labels: Tensor | None = None


def images_in(folder: Path, window: Preprocessing, limit: int | None = None) -> Images:
    """A folder of images; with labels where it is a synthetic set that records them; noise is of no class.

    Raises:
        ArtifactError, DataError, UsageError: as `calib.image_set.stream`.
    """
    pixels = image_set.read(folder, window.image_size, window.crop, limit=limit)
    labels = None
    recorded = read_sidecar(folder).metadata["labels"] if image_set.is_synthetic(folder) else None
    if recorded is not None:
        # A file of a synthetic set is named for its place in it.
        places = [int(file.name.partition("_")[0]) for file in image_set.listed(folder, limit)]
        labels = torch.tensor([recorded[place] for place in places])
    return Images(torch.from_numpy(window.normalize(pixels)), labels)


def training_images(data: str, window: Preprocessing, count: int | None) -> Images:
    """The training images of a data set, `count` of them at most, with their labels.

    Raises:
        UsageError, DataError: as `toolchain.data.sources.open_data`.
    """
    found = [(pixels, labels) for pixels, labels, _ in batches(open_data(data, "train", window, count), window, 32)]
    pixels = torch.from_numpy(np.concatenate([pixels for pixels, _ in found]))
    return Images(pixels, torch.tensor([label for _, labels in found for label in labels]))
