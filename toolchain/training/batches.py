"""Where a training step's input comes from: pixels, or the cached output of a frozen backbone.

Both mix images by CutMix with rectangles aligned to tokens and anchored at a corner. Without it the class map of a
token only has to know the image's class, which every token can read off the class token: maps become uniform. With it
one image holds two classes, and each token must answer for what it sees itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from toolchain.data.pool import Pool
from toolchain.model.lctr import Cues, Lctr
from toolchain.preprocessing import Preprocessing
from toolchain.progress import Progress, silent


@dataclass(frozen=True)
class CutMix:
    """Rectangles of tokens pasted from one image of the batch into another.

    Attributes:
        probability: share of the batches that are mixed.
        sides: least and largest side of a rectangle, as fractions of the grid.
    """

    probability: float = 0.8
    sides: tuple[float, float] = (0.36, 0.65)

    def draw(self, grid: int, generator: torch.Generator) -> Tensor | None:
        """(grid, grid) bool, true where the other image shows; None for a batch left as it is."""
        if torch.rand((), generator=generator) >= self.probability:
            return None
        low, high = (round(s * grid) for s in self.sides)
        height, width = torch.randint(low, high + 1, (2,), generator=generator).tolist()
        mask = torch.zeros(grid, grid, dtype=torch.bool)
        mask[:height, :width] = True
        flips = [axis for axis in (0, 1) if torch.rand((), generator=generator) < 0.5]
        return mask.flip(flips)


@dataclass(frozen=True)
class Batch:
    """A training step's input.

    Attributes:
        cues: what the classifier sees.
        targets: (B, C), rows sum to 1.
        labels: (B,) of the larger part of each image.
    """

    cues: Cues
    targets: Tensor
    labels: Tensor


class Batches(Protocol):
    """Training input, epoch by epoch."""

    @property
    def steps(self) -> int:
        """Batches per epoch."""

    def epoch(self, model: Lctr, precision: torch.autocast, generator: torch.Generator) -> Iterator[Batch]:
        """The batches of one epoch, wholly decided by the generator."""


@dataclass(frozen=True)
class ImageBatches:
    """Batches computed from pixels, through the backbone.

    Attributes:
        pool: images and labels.
        preprocessing: normalization.
        batch_size: images per step; an incomplete last batch is left out.
        cutmix: how images are mixed.
    """

    pool: Pool
    preprocessing: Preprocessing
    batch_size: int
    cutmix: CutMix

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return len(self.pool.labels) // self.batch_size

    def epoch(self, model: Lctr, precision: torch.autocast, generator: torch.Generator) -> Iterator[Batch]:
        """Shuffled, flipped left-right at random, mixed: as bytes, which are a quarter of what they become."""
        device = model.cls_token.device
        pool, labels = torch.from_numpy(self.pool.images), torch.from_numpy(self.pool.labels)
        for rows in _shuffled(len(labels), self.batch_size, generator):
            images = pool[rows]
            flipped = torch.rand(len(rows), generator=generator) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(2), images)
            mask = self.cutmix.draw(model.preset.grid, generator)
            if mask is not None:
                patch = model.preset.patch_size
                pixels = mask.repeat_interleave(patch, 0).repeat_interleave(patch, 1)
                images = torch.where(pixels[..., None], images.roll(1, 0), images)
            normalized = torch.from_numpy(self.preprocessing.normalize(images.numpy()))
            with precision:
                cues = model.cues(normalized.to(device))
            yield Batch(cues, *(t.to(device) for t in _mixed(labels[rows], mask, model.num_classes)))


@dataclass(frozen=True)
class CueBatches:
    """Batches from the cached output of a frozen backbone; CutMix works on tokens.

    Attributes:
        cues: features (V, N, D, h, w) float16 and class attention (V, N, h, w): V views of each image.
        labels: (N,).
        batch_size: images per step; an incomplete last batch is left out.
        cutmix: how images are mixed.
    """

    cues: Cues
    labels: Tensor
    batch_size: int
    cutmix: CutMix

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return len(self.labels) // self.batch_size

    def epoch(self, model: Lctr, precision: torch.autocast, generator: torch.Generator) -> Iterator[Batch]:
        """Shuffled, a random view of each image, mixed."""
        device = model.cls_token.device
        for rows in _shuffled(len(self.labels), self.batch_size, generator):
            views = torch.randint(self.cues.features.shape[0], (len(rows),), generator=generator)
            cues = Cues(*(cached[views, rows].float().to(device) for cached in self.cues))
            mask = self.cutmix.draw(model.preset.grid, generator)
            if mask is not None:
                shown = mask.to(device)
                cues = Cues(*(torch.where(shown, part.roll(1, 0), part) for part in cues))
            yield Batch(cues, *(t.to(device) for t in _mixed(self.labels[rows], mask, model.num_classes)))


@torch.no_grad()
def cached_cues(
    model: Lctr, pool: Pool, preprocessing: Preprocessing, *, batch_size: int = 16, progress: Progress = silent
) -> Cues:
    """The backbone's output for each image as it is and flipped left-right.

    Returns:
        features (2, N, D, h, w) float16 and class attention (2, N, h, w) float32, on the CPU.
    """
    model.eval()
    device = model.cls_token.device
    views: list[Cues] = []
    total = 2 * len(pool.labels)
    for flipped in (False, True):
        parts = []
        for start in range(0, len(pool.labels), batch_size):
            images = torch.from_numpy(preprocessing.normalize(pool.images[start : start + batch_size]))
            cues = model.cues((images.flip(-1) if flipped else images).to(device))
            parts.append(Cues(cues.features.half().cpu(), cues.class_attention.cpu()))
            progress(flipped * len(pool.labels) + start + len(images), total)
        views.append(Cues(*(torch.cat(part) for part in zip(*parts, strict=True))))
    return Cues(*(torch.stack(part) for part in zip(*views, strict=True)))


def _shuffled(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(count, generator=generator)
    return iter(order[: count // batch_size * batch_size].split(batch_size))


def _mixed(labels: Tensor, mask: Tensor | None, num_classes: int) -> tuple[Tensor, Tensor]:
    """Targets weighted by visible area (B, C), and the label of the larger part (B,)."""
    own = F.one_hot(labels, num_classes).float()
    share = 0.0 if mask is None else float(mask.float().mean())
    return own * (1 - share) + own.roll(1, 0) * share, labels if share < 0.5 else labels.roll(1, 0)
