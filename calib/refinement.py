"""Steps on the pixels of images that a generator drew.

Behind lctr-small's GELUs a quarter to two fifths of the channels are not half as loud on images of a generator trained
for minutes as on real ones, and real ones are clipped there. A few steps that each image takes on its own wake them.
On noise the same steps do little: a network reads nothing in it that they could go by. SNR of logits / map in INT8, dB,
on 100 validation and 150 test photographs (`make finetuned`, one seed of `fdda.FAST`):

    calibrated on                             validation   test
    128 images as the generator drew them     22.0 / 21.9  21.4 / 22.3
    64 of them, 8 steps of 0.1                24.0 / 22.8  24.0 / 25.7
    64 of them, 15 steps of 0.05              24.1 / 24.3  24.2 / 25.0
    32 images of noise, 15 steps of 0.1       17.2 / 20.4  17.1 / 21.3
    32 real ones                              24.4 / 23.7  24.1 / 23.5

More than 64 are not worth their time: ranges are as wide as the widest image, and 32 of 128 refined give what they give
alone (23.9 / 23.9 and 24.0 / 23.9 on the validation photographs).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calib.descent import Terms as DescentTerms
from calib.descent import descended, jittered
from calib.teacher import Teacher
from toolchain.errors import UsageError
from toolchain.progress import Progress, within

BatchTerms = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
"""Normalized images (B, 3, S, S) and labels (B,) -> terms of a loss."""
JITTER = 0.5
"""Largest shift before each step, as a share of the side: images are shifted around their edges by any distance."""


@dataclass(frozen=True)
class Refinement:
    """How far.

    Attributes:
        steps: of Adam.
        learning_rate: in units of the network's normalization.
        most: images that are refined; of more, so many chosen by chance, and the others stay as they are.
        batch: images refined together.
        betas: of Adam.
    """

    steps: int
    learning_rate: float
    most: int = 64
    batch: int = 16
    betas: tuple[float, float] = (0.5, 0.9)

    def __post_init__(self) -> None:
        for name in ("steps", "most", "batch"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"{name} of the refinement is {value}: give at least 1.")

    def steps_for(self, count: int) -> int:
        """That so many images take, over all batches."""
        return self.steps * -(-min(count, self.most) // self.batch)


def refined(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    refinement: Refinement,
    *,
    terms: BatchTerms,
    teacher: Teacher,
    random: torch.Generator,
    progress: Progress,
) -> NDArray[np.uint8]:
    """Images (N, S, S, 3) uint8 RGB, as many changed as shall be, so that a loss of their batch is less.

    Args:
        images: to start at.
        labels: (N,), of the images.
        refinement: how far.
        terms: of the loss.
        teacher: whose normalization it is.
        random: source of the choice, of shifts and mirroring.
        progress: counts steps.

    Raises:
        TrainingError: a loss is no longer finite.
    """
    chosen = torch.randperm(len(images), generator=random)[: refinement.most]
    total = refinement.steps_for(len(images))
    found = images.copy()
    for done, part in enumerate(chosen.split(refinement.batch)):
        rows = part.numpy()
        changed, _ = descended(
            teacher.normalized(images[rows]),
            _shifted(terms, torch.from_numpy(labels[rows]).to(teacher.device), random),
            rates=[refinement.learning_rate] * refinement.steps,
            betas=refinement.betas,
            teacher=teacher,
            progress=within(progress, done * refinement.steps, total),
        )
        found[rows] = teacher.pixels(changed)
    return found


def _shifted(terms: BatchTerms, labels: Tensor, random: torch.Generator) -> DescentTerms:
    """The terms of images that are shifted anew at each step: no pixel is tuned to its place among the patches."""
    return lambda step, images: terms(jittered(images, JITTER, random), labels)
