"""A data set decoded once and held in memory, for training that visits each image many times."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolchain.data.dataset import DataSet
from toolchain.data.decoding import decoded_chunks
from toolchain.progress import Progress, silent


@dataclass(frozen=True)
class Pool:
    """Images (N, S, S, 3) uint8 and labels (N,). Boxes are left behind: training has no use for them."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def pool_from_dataset(data: DataSet, progress: Progress = silent) -> Pool:
    """Decode a whole data set, by all cores where it is large; the note of the progress is the rate in images/s.

    Raises:
        DataError: an image cannot be decoded.
    """
    start = time.perf_counter()
    # The first image, decoded twice, says how large all of them are: memory is taken once.
    images = np.empty((len(data), *data[0].image.shape), np.uint8)
    labels = np.empty(len(data), np.int64)
    done = 0
    for samples in decoded_chunks(data):
        for row, sample in enumerate(samples, start=done):
            images[row], labels[row] = sample.image, sample.label
        done += len(samples)
        progress(done, len(data), f"{done / (time.perf_counter() - start):.0f} images/s")
    return Pool(images, labels)
