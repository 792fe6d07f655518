"""A data set decoded once and held in memory, for training that visits each image many times."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from toolchain.data.dataset import DataSet
from toolchain.progress import Progress, silent

CHUNK = 200


@dataclass(frozen=True)
class Pool:
    """Images (N, S, S, 3) uint8 and labels (N,). Boxes are left behind: training has no use for them."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def pool_from_dataset(data: DataSet, progress: Progress = silent) -> Pool:
    """Decode a whole data set with one process per core."""
    chunks = [range(start, min(start + CHUNK, len(data))) for start in range(0, len(data), CHUNK)]
    images, labels = [], []
    # Spawned, not forked: the parent may hold torch's threads.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=multiprocessing.get_context("spawn")) as workers:
        for some_images, some_labels in workers.map(partial(_decode, data), chunks):
            images.append(some_images)
            labels.append(some_labels)
            progress(sum(map(len, labels)), len(data))
    return Pool(np.concatenate(images), np.concatenate(labels))


def _decode(data: DataSet, indices: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    samples = [data[i] for i in indices]
    return np.stack([s.image for s in samples]), np.array([s.label for s in samples])
