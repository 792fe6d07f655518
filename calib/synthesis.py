"""Synthetic images by one method or another: what all methods have in common.

A method turns class labels into images with the help of a frozen teacher, `calib.fdda` by training a generator,
`calib.patch_similarity` by changing pixels, `calib.noise` not at all. What comes out is judged alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calib.alignment import Alignment
from calib.moments import Moments, image_moments, pooled
from calib.observation import NOTHING, frozen, observing
from calib.teacher import Teacher
from toolchain.errors import UsageError
from toolchain.progress import Progress, silent

EXAMINED = 16
"""Images that the teacher looks at in one pass when they are judged."""


@dataclass(frozen=True)
class Drawn:
    """What a method made.

    Attributes:
        images: (count, S, S, 3) uint8 RGB.
        labels: (count,) int64, what each was made for; None: images of no class.
        losses: term -> value per step; empty where nothing was trained.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    losses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class Method(Protocol):
    """A way to make images."""

    @property
    def alignment(self) -> Alignment | None:
        """What the images are aligned with; None: with no statistics."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Parts of the method that cannot be had, one sentence each."""

    def draw(self, teacher: Teacher, labels: Tensor, random: torch.Generator, progress: Progress) -> Drawn:
        """As many images as `labels` (count,).

        Args:
            teacher: frozen.
            labels: classes to make them for; a method may put a better image of another class in one's place.
            random: source of all numbers drawn, on the CPU whatever the device, so that a seed means the same
                everywhere.
            progress: counts steps.

        Raises:
            TrainingError: a loss is no longer finite.
        """


@dataclass(frozen=True)
class SyntheticImages:
    """What was made, and how well.

    Attributes:
        images: (count, S, S, 3) uint8 RGB.
        labels: (count,) int64, the class each image was made for; None where the method makes images of no class.
        losses: term -> value per step.
        agreement: share of the images that the teacher classifies as their label; None without labels.
        deviation_ratio: layer -> standard deviation of what is seen there, synthetic over real, median over channels:
            below 1, ranges taken from these images come out too narrow. Empty without statistics.
        missing: parts of the method that could not be used, one sentence each.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    losses: Mapping[str, tuple[float, ...]]
    agreement: float | None
    deviation_ratio: Mapping[str, float]
    missing: tuple[str, ...]


def synthesize(
    method: Method, teacher: Teacher, *, count: int, seed: int, progress: Progress = silent
) -> SyntheticImages:
    """Make `count` images, evenly over the classes where the method finds as good ones of all.

    The same arguments give the same bytes on the same machine; the global random state is left as it was.

    Args:
        method: see there.
        teacher: its network's parameters and mode are unchanged afterwards.
        count: images to draw.
        seed: of every random number.
        progress: counts steps.

    Raises:
        UsageError: a count under 1.
        ModelError: the alignment is of a network with other channels or classes.
        TrainingError: a loss is no longer finite.
    """
    if count < 1:
        raise UsageError(f"count is {count}: give at least 1.")
    random = torch.Generator().manual_seed(seed)
    with frozen(teacher.model), torch.backends.cudnn.flags(deterministic=True):
        if method.alignment:
            _check_fit(method.alignment, teacher)
        order = torch.randperm(teacher.num_classes, generator=random)
        labels = order[torch.arange(count) % teacher.num_classes]
        drawn = method.draw(teacher, labels, random, progress)
        predicted, ratio = _examine(teacher, drawn.images, method.alignment)
    agreement = None if drawn.labels is None else float((predicted == drawn.labels).mean())
    return SyntheticImages(drawn.images, drawn.labels, drawn.losses, agreement, ratio, method.missing)


@torch.no_grad()
def _check_fit(alignment: Alignment, teacher: Teacher) -> None:
    with observing(teacher.model, alignment.view) as observation:
        classes = teacher.logits(torch.zeros(1, 3, teacher.image_size, teacher.image_size)).shape[1]
        alignment.check(classes, observation.take())


@torch.no_grad()
def _examine(
    teacher: Teacher, images: NDArray[np.uint8], alignment: Alignment | None
) -> tuple[NDArray[np.int64], dict[str, float]]:
    """Predicted classes (count,) and deviation ratio of finished images, as they come back from a file."""
    predicted: list[NDArray[np.int64]] = []
    seen: list[list[Moments]] = []
    with observing(teacher.model, alignment.view if alignment else NOTHING) as observation:
        for start in range(0, len(images), EXAMINED):
            logits = teacher.logits(teacher.normalized(images[start : start + EXAMINED]))
            predicted.append(logits.argmax(1).cpu().numpy())
            seen.append([image_moments(positions) for positions in observation.take()])
    ratio = alignment.deviation_ratio([pooled(layer) for layer in zip(*seen, strict=True)]) if alignment else {}
    return np.concatenate(predicted), ratio
