"""FDDA: a generator whose images make a frozen network show the statistics of data nobody has here.

The generator is trained on (arXiv:2109.04186; spec/fdda.md)

    L = 0.5 CE(random labels) + 0.2 L_BNS + 0.9 L_D + 0.01 L_C + 0.5 CE(one class)

L_BNS on the batch of random labels, L_D and L_C on the batch of one class: those that have a center and that the
network recognizes take turns, in an order drawn anew each time. Without class statistics L_BNS and cross-entropy
remain, without any cross-entropy and total variation.

`PAPER` has the published constants. `FAST` is for calibration in minutes: a few hundred steps need a learning rate of
1e-2, where 1e-3 is for 80,000, and 1.0 as the factor of L_BNS is a choice made on one small transformer. Moments are
compared in units of their deviation, at BatchNorms too: as they are, a deep layer or two with large variances are most
of the loss, and the published noise hides what tells classes apart. What so few steps leave undone, two things make up
for where there are statistics:

- Some images are far from anything real, most of them of a few classes, and one alone makes a range too wide for all:
  so four are drawn for each that is kept, and the farther half, by L_BNS of the image alone, is out (`nearest`).
- Of what is kept, up to 64 images take a few steps of their own (`calib.refinement`), down CE and L_BNS.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from calib import generator
from calib.alignment import Alignment
from calib.candidates import nearest
from calib.generator import Generator, GeneratorConfig
from calib.losses import total_variation
from calib.moments import image_moments
from calib.observation import NOTHING, Observation, observing
from calib.refinement import Refinement, refined
from calib.synthesis import Drawn
from calib.teacher import Teacher
from toolchain.errors import TrainingError, UsageError
from toolchain.progress import Progress, within

UNALIGNED = "no statistics: L_BNS, L_D and L_C were left out, total variation took their place"


@dataclass(frozen=True)
class LossWeights:
    """Factor of each term.

    Attributes:
        random_class: cross-entropy of the random-label batch.
        single_class: cross-entropy of the single-class batch.
        bns: global moments.
        distorted: class center, noise added.
        centralized: class center.
        total_variation: smoothness prior, used only where no statistics say what images look like.
    """

    random_class: float = 0.5
    single_class: float = 0.5
    bns: float = 0.2
    distorted: float = 0.9
    centralized: float = 0.01
    total_variation: float = 0.1


@dataclass(frozen=True)
class FddaConfig:
    """How the generator is trained and sampled.

    Attributes:
        steps: optimizer steps.
        batch: images per step of random labels, and as many of one class.
        apart: the generator normalizes the two batches apart, as published, and not as one.
        relative: moments at BatchNorms are compared in units of their running deviation, and L_D's noise is the spread
            that was measured (`calib.alignment`); False: as published.
        bf16: compute in bfloat16 where torch's autocast deems it safe; losses, weights and the images that are drawn
            stay float32.
        learning_rate: of Adam.
        betas: of Adam.
        decay_at: shares of the training after which the learning rate is multiplied by `decay`.
        decay: factor.
        harvests: points, evenly spaced over the second half of the training, at which images are drawn. A generator
            of one moment is narrower than the same generator at several.
        candidates: drawn for each image that is kept (`nearest`); 1 where there is nothing to tell them apart by.
        refinement: of what was kept; None: it is left as the generator drew it.
        weights: of the losses.
        generator: sizes.
    """

    steps: int
    batch: int
    apart: bool
    relative: bool
    bf16: bool
    learning_rate: float
    betas: tuple[float, float]
    decay_at: tuple[float, ...]
    decay: float
    harvests: int
    candidates: int
    refinement: Refinement | None
    weights: LossWeights
    generator: GeneratorConfig

    def __post_init__(self) -> None:
        for name in ("steps", "harvests", "candidates"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"{name} is {value}: give at least 1.")
        if self.batch < 2:
            raise UsageError(f"batch is {self.batch}, but BatchNorm in the generator compares images: give at least 2.")


PAPER = FddaConfig(
    steps=400 * 200,
    batch=16,
    apart=True,
    relative=False,
    bf16=False,
    learning_rate=1e-3,
    betas=(0.5, 0.999),
    decay_at=(0.25, 0.5, 0.75),
    decay=0.1,
    harvests=1,
    candidates=1,
    refinement=None,
    weights=LossWeights(),
    generator=generator.PAPER,
)
FAST = FddaConfig(
    steps=150,
    batch=8,
    apart=False,
    relative=True,
    bf16=True,
    learning_rate=1e-2,
    betas=(0.5, 0.999),
    decay_at=(0.7, 0.9),
    decay=0.3,
    harvests=4,
    candidates=4,
    refinement=Refinement(steps=8, learning_rate=0.1),
    weights=LossWeights(bns=1.0),
    generator=generator.FAST,
)
PRESETS = {"fast": FAST, "paper": PAPER}


@dataclass(frozen=True)
class Fdda:
    """The method.

    Attributes:
        config: how to train.
        alignment: what to align images with; None: the network has no statistics that anybody knows.
    """

    config: FddaConfig
    alignment: Alignment | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """Losses that were left out."""
        return self.alignment.missing if self.alignment else (UNALIGNED,)

    def draw(self, teacher: Teacher, labels: Tensor, random: torch.Generator, progress: Progress) -> Drawn:
        """Train a generator, draw images for the labels (count,) on the way, keep the `nearest`, and refine those."""
        view = self.alignment.view if self.alignment else NOTHING
        with observing(teacher.model, view) as observation:
            return _Training(self, teacher, observation, random).run(labels, progress)


class _Training:
    """The generator being trained, and drawn from."""

    def __init__(self, method: Fdda, teacher: Teacher, observation: Observation, random: torch.Generator) -> None:
        config = method.config
        self._config, self._alignment, self._random = config, method.alignment, random
        self._teacher, self._observation = teacher, observation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.initial_seed())
            sizes = (teacher.num_classes, teacher.image_size, teacher.mean, teacher.std)
            self._generator = Generator(config.generator, *sizes).to(teacher.device)
        self._optimizer = torch.optim.Adam(self._generator.parameters(), config.learning_rate, config.betas)
        milestones = [round(share * config.steps) for share in config.decay_at]
        self._schedule = torch.optim.lr_scheduler.MultiStepLR(self._optimizer, milestones, config.decay)
        # A batch of one class is of those that there is something to align it with.
        guided = self._alignment.classes if self._alignment else ()
        self._singles = guided or tuple(range(teacher.num_classes))
        self._candidates = config.candidates if self._alignment else 1
        self._turns: list[int] = []

    def run(self, labels: Tensor, progress: Progress) -> Drawn:
        """All steps, and the best of the images drawn after some of them, refined."""
        steps, alignment = self._config.steps, self._alignment
        refinement = self._config.refinement if alignment else None
        total = steps + (refinement.steps_for(len(labels)) if refinement else 0)
        images, made_for, curve = self._drawn(labels, within(progress, 0, total))
        if alignment and refinement:
            images = refined(
                *(images, made_for, refinement),
                terms=partial(self._refining_terms, alignment),
                teacher=self._teacher,
                random=self._random,
                progress=within(progress, steps, total),
            )
        return Drawn(images, made_for, curve)

    def _drawn(
        self, labels: Tensor, progress: Progress
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[str, tuple[float, ...]]]:
        """The images that are kept, what each was made for, and the losses of each step."""
        steps, harvests = self._config.steps, self._config.harvests
        harvest_after = [math.ceil(steps * (0.5 + 0.5 * (h + 1) / harvests)) for h in range(harvests)]
        shares = [share.repeat(self._candidates) for share in torch.tensor_split(labels, harvests)]
        offered = torch.cat(shares)
        images: list[NDArray[np.uint8]] = []
        distances: list[Tensor] = []
        curve: list[dict[str, float]] = []
        for step in range(1, steps + 1):
            curve.append(self._step())
            total = curve[-1]["total"]
            if not math.isfinite(total):
                raise TrainingError(f"the generator's loss is {total} at step {step}: lower the learning rate.")
            while harvest_after and harvest_after[0] == step:
                del harvest_after[0]
                for drawn, distance in self._harvest(shares.pop(0)):
                    images.append(drawn)
                    distances.append(distance)
            progress(step, steps, f"loss {total:.3f}")
        kept = nearest(offered.numpy(), torch.cat(distances).numpy(), labels.numpy())
        return np.concatenate(images)[kept], offered.numpy()[kept], by_term(curve)

    def _step(self) -> dict[str, float]:
        terms = self._terms()
        total = torch.stack([getattr(self._config.weights, name) * term for name, term in terms.items()]).sum()
        self._optimizer.zero_grad()
        total.backward()
        self._optimizer.step()
        self._schedule.step()
        return {"total": float(total.detach()), **{name: float(term.detach()) for name, term in terms.items()}}

    def _terms(self) -> dict[str, Tensor]:
        """The losses of one new pair of batches."""
        batch = self._config.batch
        mixed = torch.randint(self._teacher.num_classes, (batch,), generator=self._random)
        single = self._next_class()
        labels = torch.cat([mixed, torch.full((batch,), single)]).to(self._teacher.device)
        with self._autocast():
            images = self._generated(self._noise(2 * batch), labels)
        logits, seen = self._observed(images)
        entropy = F.cross_entropy(logits, labels, reduction="none")
        terms = {"random_class": entropy[:batch].mean(), "single_class": entropy[batch:].mean()}
        if self._alignment is None:
            return terms | {"total_variation": total_variation(images)}
        # In chunks: the gradients of two slices would be two batches that are half empty.
        mixed_seen, single_seen = zip(*(layer.chunk(2) for layer in seen), strict=True)
        return terms | self._alignment.losses(mixed_seen, single_seen, single, self._random)

    def _refining_terms(self, alignment: Alignment, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The weighted losses of images (B, 3, S, S) of the labels (B,), each of which is aligned by itself, too."""
        logits, seen = self._observed(images)
        weights = self._config.weights
        return {
            "random_class": weights.random_class * F.cross_entropy(logits, labels),
            "bns": weights.bns * (alignment.distance(seen) + alignment.distance(seen, image_moments).mean()),
        }

    def _observed(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the network makes of images (B, 3, S, S): logits (B, C), and of each layer looked at (B, N, D)."""
        with self._autocast():
            logits = self._teacher.logits(images)
        return logits.float(), [positions.float() for positions in self._observation.take()]

    def _generated(self, z: Tensor, labels: Tensor) -> Tensor:
        """Both batches, (2B, 3, S, S)."""
        parts = 2 if self._config.apart else 1
        return torch.cat([self._generator(*part) for part in zip(z.chunk(parts), labels.chunk(parts), strict=True)])

    def _next_class(self) -> int:
        # In turns: of 40 classes and 150 steps, chance would leave four with a single step or none.
        if not self._turns:
            self._turns = torch.randperm(len(self._singles), generator=self._random).tolist()
        return self._singles[self._turns.pop()]

    @torch.no_grad()
    def _harvest(self, labels: Tensor) -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
        """One image per label, and the distance of each: parts of both.

        In whole batches, as in training: the generator's BatchNorm sees the batch.
        """
        batch = self._config.batch * (1 if self._config.apart else 2)
        for start in range(0, len(labels), batch):
            part = labels[start : start + batch]
            # A short batch is filled up with its own labels, and the surplus thrown away.
            filled = part[torch.arange(batch) % len(part)].to(self._teacher.device)
            images = self._generator(self._noise(batch), filled)[: len(part)]
            yield self._teacher.pixels(images), self._distances(images)

    def _distances(self, images: Tensor) -> Tensor:
        """How far each image is from real ones; 0 where nobody knows or asks."""
        if self._alignment is None or self._candidates == 1:
            return torch.zeros(len(images))
        _, seen = self._observed(images)
        return self._alignment.distance(seen, image_moments).cpu()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._teacher.device.type, torch.bfloat16, enabled=self._config.bf16)

    def _noise(self, count: int) -> Tensor:
        return torch.randn(count, self._config.generator.latent, generator=self._random).to(self._teacher.device)


def by_term(curve: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    """Losses of each step -> values of each loss."""
    return {name: tuple(terms[name] for terms in curve) for name in curve[0]}
