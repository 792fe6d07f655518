"""A training step's input: which images, which view of each, and how they are mixed.

All of it is drawn for the whole batch, by every process alike. A process then computes its share of the batch, in one
pass or several: neither the number of processes nor that of passes changes what is seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from toolchain.errors import UsageError
from toolchain.model.lctr import Cues, Halfway
from toolchain.training.mixing import CutMix, mixed_cues, mixed_halfway, mixed_images, mixed_targets
from toolchain.training.sources import Source, Wanted, seeds

Inputs = Tensor | Halfway | Cues
"""Images (n, 3, S, S), or what frozen blocks made of them."""


@dataclass(frozen=True)
class Share:
    """What one of several processes computes of each batch.

    Attributes:
        rank: which process this is, from 0.
        world: processes.
        accumulate: passes that each of them takes for one step.
    """

    rank: int = 0
    world: int = 1
    accumulate: int = 1

    def passes(self, batch_size: int) -> list[Tensor]:
        """Positions in the batch, one tensor for each pass.

        Raises:
            UsageError: the batch cannot be cut into parts of one size.
        """
        parts = self.world * self.accumulate
        if batch_size % parts:
            raise UsageError(
                f"--batch-size {batch_size} cannot be shared by {self.world} processes in {self.accumulate} passes "
                f"each: give a multiple of {parts}."
            )
        chunks = torch.arange(batch_size).chunk(parts)
        return list(chunks[self.rank :: self.world])


ALONE = Share()


class Batch(NamedTuple):
    """Input of one pass.

    Attributes:
        inputs: what the first trained part of the model sees.
        targets: (n, C), rows sum to 1.
        labels: (n,) of the larger part of each image.
    """

    inputs: Inputs
    targets: Tensor
    labels: Tensor


class Batches(Protocol):
    """Training input, epoch by epoch."""

    @property
    def steps(self) -> int:
        """Batches per epoch."""

    def epoch(self, generator: torch.Generator, share: Share = ALONE, first: int = 0) -> Iterator[Batch]:
        """The passes of one epoch's steps from step `first` on, wholly decided by the generator's state."""


class _Pass(NamedTuple):
    """One pass as drawn.

    Attributes:
        wanted: what to load.
        own: (n,) where the images of the pass are among the loaded ones.
        others: (n,) where the images pasted into them are.
        mask: (h, w) bool, true where the other image shows; None: no image is mixed.
    """

    wanted: Wanted
    own: Tensor
    others: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class ImageBatches:
    """Batches of images, each flipped left-right at random.

    Attributes:
        source: where images are loaded from.
        batch_size: images per step; an incomplete last batch is left out.
        cutmix: how images are mixed.
        grid: patches along a side.
        num_classes: C.
        repeats: views of an image in one batch, one after the other; an epoch then shows fewer images, not more.
    """

    source: Source
    batch_size: int
    cutmix: CutMix
    grid: int
    num_classes: int
    repeats: int = 1

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return len(self.source) // self.batch_size

    def epoch(self, generator: torch.Generator, share: Share = ALONE, first: int = 0) -> Iterator[Batch]:
        """Shuffled, flipped, mixed."""
        passes = list(self._passes(generator, share, first))
        loaded = self.source.load([p.wanted for p in passes])
        for (_, own, others, mask), (images, labels) in zip(passes, loaded, strict=True):
            inputs = images[own] if mask is None else mixed_images(images[own], images[others], mask)
            yield Batch(inputs, *mixed_targets(labels[own], labels[others], mask, self.num_classes))

    def _passes(self, generator: torch.Generator, share: Share, first: int) -> Iterator[_Pass]:
        positions = share.passes(self.batch_size)
        # A stream of its own: images that nobody augments are drawn as if there were no seeds.
        views = np.random.default_rng(generator.initial_seed())
        order = _shuffled(len(self.source), self.batch_size, generator, self.repeats)
        for wanted, mask in islice((self._drawn(rows, generator, views) for rows in order), first, None):
            for own in positions:
                # The image before, or the last one that is no other view of the same image.
                others = own if mask is None else (own - self.repeats) % self.batch_size
                needed, places = torch.cat([own, others]).unique(return_inverse=True)
                loaded = Wanted(*(part[needed] for part in wanted))
                yield _Pass(loaded, places[: len(own)], places[len(own) :], mask)

    def _drawn(
        self, rows: Tensor, generator: torch.Generator, views: np.random.Generator
    ) -> tuple[Wanted, Tensor | None]:
        flipped = torch.rand(len(rows), generator=generator) < 0.5
        mask = self.cutmix.draw(self.grid, generator)
        return Wanted(rows, flipped, seeds(len(rows), views)), mask


@dataclass(frozen=True)
class CachedBatches:
    """Batches from the cached output of frozen blocks; CutMix works on tokens.

    Attributes:
        cached: features or tokens (V, N, ...) float16 and class attention (V, N, h, w): V views of each image.
        labels: (N,).
        batch_size: images per step; an incomplete last batch is left out.
        cutmix: how images are mixed.
        num_classes: C.
    """

    cached: Halfway | Cues
    labels: Tensor
    batch_size: int
    cutmix: CutMix
    num_classes: int

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return len(self.labels) // self.batch_size

    def epoch(self, generator: torch.Generator, share: Share = ALONE, first: int = 0) -> Iterator[Batch]:
        """Shuffled, a random view of each image, mixed."""
        positions = share.passes(self.batch_size)
        drawn = (self._drawn(rows, generator) for rows in _shuffled(len(self.labels), self.batch_size, generator))
        for rows, views, mask in islice(drawn, first, None):
            for own in positions:
                others = (own - 1) % self.batch_size
                inputs = self._cached(views[own], rows[own])
                if mask is not None:
                    inputs = _mixed(inputs, self._cached(views[others], rows[others]), mask)
                targets = mixed_targets(self.labels[rows[own]], self.labels[rows[others]], mask, self.num_classes)
                yield Batch(inputs, *targets)

    def _drawn(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        views = torch.randint(len(self.cached.class_attention), (len(rows),), generator=generator)
        return rows, views, self.cutmix.draw(self.cached.class_attention.shape[-1], generator)

    def _cached(self, views: Tensor, rows: Tensor) -> Halfway | Cues:
        return type(self.cached)(*(part[views, rows].float() for part in self.cached))


def _mixed(own: Halfway | Cues, others: Halfway | Cues, mask: Tensor) -> Halfway | Cues:
    if isinstance(own, Halfway) and isinstance(others, Halfway):
        return mixed_halfway(own, others, mask)
    return mixed_cues(Cues(*own), Cues(*others), mask)


def _shuffled(count: int, batch_size: int, generator: torch.Generator, repeats: int = 1) -> Iterator[Tensor]:
    order = torch.randperm(count, generator=generator).repeat_interleave(repeats)
    return iter(order[: count // batch_size * batch_size].split(batch_size))
