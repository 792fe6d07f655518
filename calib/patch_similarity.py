"""PSAQ-ViT's images (arXiv:2203.02250): pixels changed until a transformer's attention tells their patches apart.

No statistics are needed. What attention made of the patches of a real image is partly alike and partly not, so the
cosine similarities of pairs of patches spread; on noise they are all the same. The spread is the differential entropy
of their density, estimated with a Gaussian kernel, and is maximized in every block:

    L = -sum_blocks H + CE(label) + 0.05 |TV - target|

Constants are those of the authors' release where nothing else is said.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calib.alignment import Alignment
from calib.descent import descended, jittered
from calib.observation import Observation, View, observing
from calib.synthesis import Drawn
from calib.teacher import Teacher
from toolchain.errors import UsageError
from toolchain.progress import Progress, within

BANDWIDTH = 0.01
"""Standard deviation of the kernel, in units of cosine similarity."""
POINTS = 10
"""At which the density is evaluated, from the least similarity of the batch to the largest."""
DENSITY_FLOOR = 1e-4
"""Added to the density, whose logarithm is taken."""
LEAST_EXPONENT = -80.0
"""Of a kernel. Beyond, it would be no normal number, and those take twenty times as long to compute."""
VARIATION_WEIGHT = 0.05
VARIATION = 1.14, 1.37
"""The target of the total variation is drawn from this range, per root of the number of values. The release has 2500 to
3000 for its 32 images of 3 x 224 x 224, whose root is 2195; so it means the same for images of any size."""
JITTER = 15 / 224, 30 / 224
"""Largest shift of the images from step to step, as a share of their side, in the first and second half."""


@dataclass(frozen=True)
class PatchSimilarityConfig:
    """How pixels are changed.

    Attributes:
        steps: of Adam, in two halves, each with a warm-up and a cosine of its own.
        batch: images changed together.
        learning_rate: at the end of a warm-up.
        betas: of Adam.
        warmup: share of a half.
    """

    steps: int
    batch: int = 32
    learning_rate: float = 0.2
    betas: tuple[float, float] = (0.5, 0.9)
    warmup: float = 0.2

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise UsageError(f"steps is {self.steps}, and they are taken in two halves: give at least 2.")

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        half = self.steps // 2
        done, warm = step % half, max(1, round(self.warmup * half))
        if done < warm:
            return self.learning_rate * (done + 1) / warm
        return 0.5 * self.learning_rate * (1 + math.cos(math.pi * (done - warm) / (half - warm)))


PRESETS = {"fast": PatchSimilarityConfig(steps=100), "paper": PatchSimilarityConfig(steps=1000)}


@dataclass(frozen=True)
class PatchSimilarity:
    """The method.

    Attributes:
        config: how to change pixels.
        view: of what attention made of each patch, one layer for each block.
    """

    config: PatchSimilarityConfig
    view: View
    alignment: Alignment | None = None
    missing: tuple[str, ...] = ()

    def draw(self, teacher: Teacher, labels: Tensor, random: torch.Generator, progress: Progress) -> Drawn:
        """Change random pixels until they look like images of the labels (count,)."""
        batches = labels.split(self.config.batch)
        steps = self.config.steps
        images, curves = [], []
        for index, part in enumerate(batches):
            told = within(progress, index * steps, len(batches) * steps)
            changed, curve = self._changed(teacher, part.to(teacher.device), random, told)
            images.append(teacher.pixels(changed))
            curves.append(curve)
        # Batches differ in nothing but their labels: their mean is the curve.
        losses = {name: tuple(np.mean([curve[name] for curve in curves], 0).tolist()) for name in curves[0]}
        return Drawn(np.concatenate(images), labels.numpy(), losses)

    def _changed(
        self, teacher: Teacher, labels: Tensor, random: torch.Generator, progress: Progress
    ) -> tuple[Tensor, dict[str, list[float]]]:
        """Images (B, 3, S, S) for the labels (B,), and each loss at each step."""
        shape = (len(labels), 3, teacher.image_size, teacher.image_size)
        images = torch.randn(shape, generator=random).to(teacher.device)
        low, high = VARIATION
        target = float(low + (high - low) * torch.rand((), generator=random)) * math.sqrt(images.numel())
        steps = self.config.steps
        with observing(teacher.model, self.view) as observation:

            def terms(step: int, images: Tensor) -> dict[str, Tensor]:
                shown = jittered(images, JITTER[2 * step // steps], random)
                return _terms(teacher, observation, shown, labels, target)

            rates = [self.config.rate(step) for step in range(steps)]
            return descended(images, terms, rates=rates, betas=self.config.betas, teacher=teacher, progress=progress)


def _terms(
    teacher: Teacher, observation: Observation, images: Tensor, labels: Tensor, target: float
) -> dict[str, Tensor]:
    logits = teacher.logits(images)
    return {
        "patch_similarity": patch_similarity_loss(observation.take()),
        "cross_entropy": F.cross_entropy(logits, labels),
        "total_variation": VARIATION_WEIGHT * (variation(images) - target).abs(),
    }


def patch_similarity_loss(attended: Sequence[Tensor]) -> Tensor:
    """`-sum_blocks H`, H the mean over images of the entropy of their patches' similarities.

    Args:
        attended: per block, what attention made of each patch, (B, N, d).
    """
    return -torch.stack([similarity_entropy(patches) for patches in attended]).sum()


def similarity_entropy(patches: Tensor) -> Tensor:
    """Differential entropy of the cosine similarities between the patches of an image: (B, N, d) -> (), mean over B."""
    similarities = patch_similarities(patches)
    least, largest = similarities.detach().aminmax()
    points = torch.linspace(float(least), float(largest), POINTS, device=patches.device)
    return differential_entropy(pair_density(similarities, points), points).mean()


def patch_similarities(patches: Tensor) -> Tensor:
    """Cosine similarity of every pair of patches of an image: (B, N, d) -> (B, N, N)."""
    directions = F.normalize(patches, dim=2)
    return directions @ directions.transpose(1, 2)


def pair_density(similarities: Tensor, points: Tensor) -> Tensor:
    """`density` of all similarities (B, N, N) at points (P,) -> (B, P): each pair is computed once, and itself is 1."""
    patches = similarities.shape[1]
    rows, columns = torch.triu_indices(patches, patches, 1, device=similarities.device)
    itself = density(similarities.new_ones(1, 1), points)
    return ((patches - 1) * density(similarities[:, rows, columns], points) + itself) / patches


def density(samples: Tensor, points: Tensor) -> Tensor:
    """Kernel density estimate with a Gaussian of deviation `BANDWIDTH`: samples (B, M) at points (P,) -> (B, P)."""
    mean: Tensor = _MeanKernel.apply(samples, points)  # type: ignore[no-untyped-call]
    return mean / (BANDWIDTH * math.sqrt(2 * math.pi))


class _MeanKernel(torch.autograd.Function):
    """`exp(-((x - p) / BANDWIDTH)^2 / 2)`, the mean over M: (B, M), (P,) -> (B, P).

    One point at a time, and for the gradient once more: all at once would hold P times the samples, and fetching so
    much takes four times as long as computing it again.
    """

    @staticmethod
    def forward(ctx: Any, samples: Tensor, points: Tensor) -> Tensor:
        ctx.save_for_backward(samples, points)
        return torch.stack([_kernel(samples, point)[1].mean(1) for point in points], 1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        samples, points = ctx.saved_tensors
        gradient = torch.zeros_like(samples)
        for point, slope in zip(points, slopes[0].unbind(1), strict=True):
            distance, kernel = _kernel(samples, point)
            gradient.addcmul_(kernel.mul_(distance), slope[:, None], value=-1 / (BANDWIDTH * samples.shape[1]))
        return gradient, None


def _kernel(samples: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Distances in units of `BANDWIDTH`, and what a Gaussian makes of them."""
    distance = (samples - point).div_(BANDWIDTH)
    return distance, distance.square().mul_(-0.5).clamp_(min=LEAST_EXPONENT).exp_()


def differential_entropy(density: Tensor, points: Tensor) -> Tensor:
    """`-integral p log p` by the trapezoidal rule: density (B, P) at points (P,) -> (B,)."""
    floored = density + DENSITY_FLOOR
    return torch.trapezoid(-floored * floored.log(), points, dim=-1)


def variation(images: Tensor) -> Tensor:
    """Sum of the Euclidean norms of the differences between neighbours, along rows, columns and both diagonals."""
    below, above, right, left = images[:, :, 1:], images[:, :, :-1], slice(1, None), slice(None, -1)
    differences = (
        images[..., right] - images[..., left],
        below - above,
        below[..., left] - above[..., right],
        below[..., right] - above[..., left],
    )
    return torch.stack([torch.linalg.vector_norm(difference) for difference in differences]).sum()
