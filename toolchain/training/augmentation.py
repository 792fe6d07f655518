"""Random views of whole images: crop, RandAugment, colour jitter and erasing, each wholly decided by one seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import kornia.augmentation as K
import numpy as np
import torch
from kornia.augmentation.auto import RandAugment
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toolchain.data.dataset import DataSet
from toolchain.preprocessing import Box, Preprocessing
from toolchain.training.recipes import Augmentation
from toolchain.training.sources import Wanted

MAGNITUDES = 30
"""Kornia counts RandAugment's magnitudes to 30, the release's library to 10: its m = 9 is 27 here."""
APPLIED = 0.5
"""Share of the images that a chosen operation of RandAugment is applied to."""
ASPECT = 3 / 4, 4 / 3
"""Of a random crop, width over height (Szegedy et al. 2015)."""


@dataclass(frozen=True)
class Uncropped(Preprocessing):
    """The whole image as it is on disk, which random crops are taken from; samples differ in size."""

    def crop(self, image: Image.Image) -> NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB."""
        return np.asarray(image.convert("RGB"))

    def crop_box(self, box: Box, size: tuple[int, int]) -> Box:
        """The box as it is."""
        return box


def uncropped(window: Preprocessing) -> Uncropped:
    """Whole images for a model that normalizes as `window` does."""
    return Uncropped(window.image_size, window.resize, window.mean, window.std)


class Augmenter:
    """One random view of an image.

    Args:
        augmentation: what is done.
        window: size and normalization of the result.
    """

    def __init__(self, augmentation: Augmentation, window: Preprocessing) -> None:
        self._augmentation = augmentation
        self._window = window

    def __call__(self, image: NDArray[np.uint8], flipped: bool, seed: int) -> Tensor:
        """(h, w, 3) uint8 RGB -> (3, S, S) float32, normalized; torch's own random state stays as it is."""
        # Kornia knows torch's global stream alone.
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            view = torch.from_numpy(self._cropped(image)).permute(2, 0, 1)[None].float() / 255
            view = view.flip(-1) if flipped else view
            view = self._jitter(self._randomly_operated(view)).clamp(0, 1)
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self._window.mean, self._window.std))
            # Erased last: 0 is the mean colour then.
            erased: Tensor = self._erase((view - mean) / std)
            return erased[0]

    def _randomly_operated(self, view: Tensor) -> Tensor:
        """RandAugment, each operation on half of the images: so does the release's library, and Kornia does not."""
        count = int((torch.rand(self._augmentation.operations) < APPLIED).sum())
        level = (self._augmentation.magnitude + float(torch.randn(())) * self._augmentation.magnitude_std) / 10
        if not count:
            return view
        self._policy.n = count
        # Declared whole there, and used as it is.
        self._policy.m = min(max(level, 1e-3), 1 - 1e-3) * MAGNITUDES  # type: ignore[assignment]
        operated: Tensor = self._policy(view)
        return operated

    def _cropped(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A random crop, resized to the network's input: Pillow's bicubic, which does not alias as Kornia's does."""
        corners = self._crop.forward_parameters(torch.Size((1, 3, *image.shape[:2])))["src"][0]
        (left, top), (right, bottom) = corners.amin(0).tolist(), (corners.amax(0) + 1).tolist()
        size = self._window.image_size
        resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
        return np.array(resized)

    @cached_property
    def _crop(self) -> K.RandomResizedCrop:
        return K.RandomResizedCrop((self._window.image_size,) * 2, scale=self._augmentation.crop, ratio=ASPECT)

    @cached_property
    def _policy(self) -> RandAugment:
        return RandAugment(self._augmentation.operations, MAGNITUDES // 2)

    @cached_property
    def _jitter(self) -> K.ColorJitter:
        return K.ColorJitter(*(self._augmentation.jitter,) * 3)

    @cached_property
    def _erase(self) -> K.RandomErasing:
        return K.RandomErasing(p=self._augmentation.erasing)


class AugmentedSource:
    """Random views of a data set whose images are decoded each time they are shown.

    Args:
        data: opened with `uncropped` preprocessing.
        augmentation: what is done to an image.
        window: size and normalization of the views.
        workers: processes that decode and augment ahead; 0: this one does.
    """

    def __init__(self, data: DataSet, augmentation: Augmentation, window: Preprocessing, workers: int = 0) -> None:
        self._views = _Views(data, Augmenter(augmentation, window))
        self._workers = workers

    def __len__(self) -> int:
        return len(self._views.data)

    def load(self, wanted: Sequence[Wanted]) -> Iterator[tuple[Tensor, Tensor]]:
        """Views (n, 3, S, S) and labels (n,) of each element of `wanted` in turn."""
        keys = [[(int(row), bool(flip), int(seed)) for row, flip, seed in zip(*w, strict=True)] for w in wanted]
        loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            self._views,
            batch_sampler=keys,
            num_workers=self._workers,
            # Spawned, not forked: this process may hold torch's threads.
            multiprocessing_context="spawn" if self._workers else None,
        )
        yield from map(tuple, loader)


class _Views(Dataset[tuple[Tensor, int]]):
    """(row, flipped, seed) -> a view and its label."""

    def __init__(self, data: DataSet, augmenter: Augmenter) -> None:
        self.data = data
        self._augmenter = augmenter

    def __getitem__(self, key: tuple[int, bool, int]) -> tuple[Tensor, int]:
        row, flipped, seed = key
        sample = self.data[row]
        return self._augmenter(sample.image, flipped, seed), sample.label
