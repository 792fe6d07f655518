"""FDDA, route 2: images that make a frozen transformer show the token statistics of data nobody has here.

A generator is trained on (arXiv:2109.04186; spec/fdda.md)

    L = 0.5 CE(random labels) + 1.0 L_BNS + 0.9 L_D + 0.01 L_C + 0.5 CE(one class)

L_BNS on the batch of random labels, L_D and L_C on the batch of one class. The published factor of L_BNS is 0.2, for
statistics in the units of a BatchNorm network; here they are in units of each channel's deviation, and 1.0 is a choice
made on one small model. The learning rate matters more: 1e-3 is for 80,000 steps, a few hundred need 1e-2.

The published method leaves out of L_C and L_D the classes whose one center image the teacher gets wrong. Here a center
is no image, so there is nothing to get wrong: left out are the classes without a center. With no statistics at all,
cross-entropy and total variation remain.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from calib.generator import GENERATORS, Generator, GeneratorConfig
from calib.losses import Targets, total_variation
from calib.statistics import Statistics
from calib.tokens import Moments, Observation, frozen, image_moments, observing
from toolchain.errors import ModelError, TrainingError, UsageError
from toolchain.progress import Progress, silent

Classifier = Callable[[nn.Module, Tensor], Tensor]
"""Model and normalized images (B, 3, H, W) -> logits (B, C)."""


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
    bns: float = 1.0
    distorted: float = 0.9
    centralized: float = 0.01
    total_variation: float = 0.1


@dataclass(frozen=True)
class SynthesisConfig:
    """How the generator is trained and sampled.

    Attributes:
        steps: optimizer steps.
        batch: images per step of random labels, and as many of one class.
        learning_rate: of Adam.
        betas: of Adam.
        decay_at: shares of the training after which the learning rate is multiplied by `decay`.
        decay: factor.
        harvests: points, evenly spaced over the second half of the training, at which images are drawn. A generator
            of one moment is narrower than the same generator at several.
        weights: of the losses.
        generator: sizes.
    """

    steps: int = 150
    batch: int = 8
    learning_rate: float = 1e-2
    betas: tuple[float, float] = (0.5, 0.999)
    decay_at: tuple[float, ...] = (0.7, 0.9)
    decay: float = 0.3
    harvests: int = 4
    weights: LossWeights = field(default_factory=LossWeights)
    generator: GeneratorConfig = GENERATORS["fast"]


@dataclass(frozen=True)
class SyntheticImages:
    """What was made, and how well.

    Attributes:
        images: (count, S, S, 3) uint8 RGB.
        labels: (count,) int64, the class each image was made for; classes differ by one image at most.
        losses: term -> value per step; a class-center term is NaN at steps whose class has no center.
        agreement: share of the images that the model classifies as their label.
        deviation_ratio: layer -> standard deviation of the patch tokens, synthetic over real, median over channels:
            below 1, ranges taken from these images come out too narrow. Empty without statistics.
        missing: parts of the method that could not be used, one sentence each.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    losses: Mapping[str, tuple[float, ...]]
    agreement: float
    deviation_ratio: Mapping[str, float]
    missing: tuple[str, ...]


def synthesize(
    model: nn.Module,
    statistics: Statistics | None,
    config: SynthesisConfig,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    count: int,
    seed: int,
    logits: Classifier,
    progress: Progress = silent,
) -> SyntheticImages:
    """Train a generator against the frozen model and draw `count` images from it, evenly over the classes.

    The same arguments give the same bytes on the same machine; the global random state is left as it was.

    Args:
        model: the teacher; its parameters and mode are unchanged afterwards.
        statistics: of this model, or None.
        config: see there.
        image_size: S, pixels.
        mean: per RGB channel, of pixels in [0, 1]: the model's normalization.
        std: likewise.
        count: images to draw.
        seed: of every random number.
        logits: how the model is asked for its logits.
        progress: counts steps.

    Raises:
        UsageError: count, steps, batch or harvests that make no image.
        ModelError: the statistics have another number of classes or channels than the model.
        TrainingError: the loss is no longer finite.
    """
    _check(config, count)
    device = next(model.parameters()).device
    layers = tuple(statistics.overall) if statistics else ()
    with frozen(model), observing(model, layers) as observation, torch.backends.cudnn.flags(deterministic=True):
        num_classes = logits(model, torch.zeros(1, 3, image_size, image_size, device=device)).shape[1]
        targets = Targets(statistics, device) if statistics else None
        if statistics:
            _check_fit(statistics, observation.take(), num_classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = Generator(config.generator, num_classes, image_size, mean, std).to(device)
        training = _Training(model, logits, observation, targets, generator, config, num_classes, seed)
        images, labels = training.run(count, progress)
        agreement, ratio = training.examine(images, labels)
    return SyntheticImages(images, labels, training.losses, agreement, ratio, _missing(statistics))


class _Training:
    """The generator being trained, and drawn from on the way."""

    def __init__(
        self,
        model: nn.Module,
        logits: Classifier,
        observation: Observation,
        targets: Targets | None,
        generator: Generator,
        config: SynthesisConfig,
        num_classes: int,
        seed: int,
    ) -> None:
        self._model, self._logits, self._observation, self._targets = model, logits, observation, targets
        self._generator, self._config, self._num_classes = generator, config, num_classes
        self._device = generator.mean.device
        # On the CPU whatever the device, so that a seed means the same numbers everywhere.
        self._random = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam(generator.parameters(), config.learning_rate, config.betas)
        milestones = [round(share * config.steps) for share in config.decay_at]
        self._schedule = torch.optim.lr_scheduler.MultiStepLR(self._optimizer, milestones, config.decay)
        self.losses: dict[str, tuple[float, ...]] = {}

    def run(self, count: int, progress: Progress) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """All steps, and the images drawn after some of them."""
        steps, harvests = self._config.steps, self._config.harvests
        harvest_after = [math.ceil(steps * (0.5 + 0.5 * (h + 1) / harvests)) for h in range(harvests)]
        order = torch.randperm(self._num_classes, generator=self._random)
        labels = order[torch.arange(count) % self._num_classes]
        shares = list(torch.tensor_split(labels, harvests))
        drawn: list[NDArray[np.uint8]] = []
        curve: list[dict[str, float]] = []
        for step in range(1, steps + 1):
            curve.append(self._step())
            total = curve[-1]["total"]
            if not math.isfinite(total):
                raise TrainingError(f"the generator's loss is {total} at step {step}: lower the learning rate.")
            while harvest_after and harvest_after[0] == step:
                del harvest_after[0]
                drawn += self._draw(shares.pop(0))
            progress(step, steps, f"loss {total:.3f}")
        self.losses = {name: tuple(terms.get(name, math.nan) for terms in curve) for name in _names(curve)}
        return np.stack(drawn), labels.numpy()

    def _step(self) -> dict[str, float]:
        batch = self._config.batch
        mixed = torch.randint(self._num_classes, (batch,), generator=self._random)
        single = torch.randint(self._num_classes, (1,), generator=self._random)
        labels = torch.cat([mixed, single.expand(batch)]).to(self._device)
        images = self._generator(self._noise(2 * batch), labels)
        entropy = F.cross_entropy(self._logits(self._model, images), labels, reduction="none")
        terms = {"random_class": entropy[:batch].mean(), "single_class": entropy[batch:].mean()}
        if self._targets:
            tokens = self._observation.take()
            halves = [t[:batch] for t in tokens], [t[batch:] for t in tokens]
            terms |= self._targets.losses(*halves, int(single), self._random)
        else:
            terms["total_variation"] = total_variation(images)
        weights = self._config.weights
        total = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
        self._optimizer.zero_grad()
        total.backward()
        self._optimizer.step()
        self._schedule.step()
        return {"total": float(total.detach()), **{name: float(term.detach()) for name, term in terms.items()}}

    @torch.no_grad()
    def _draw(self, labels: Tensor) -> list[NDArray[np.uint8]]:
        """One image per label. In whole batches, as in training: the generator's BatchNorm sees the batch."""
        drawn: list[NDArray[np.uint8]] = []
        batch = 2 * self._config.batch
        for start in range(0, len(labels), batch):
            part = labels[start : start + batch]
            # A short batch is filled up with its own labels, and the surplus thrown away.
            filled = part[torch.arange(batch) % len(part)].to(self._device)
            images = self._generator(self._noise(batch), filled)[: len(part)]
            pixels = (images * self._generator.std + self._generator.mean) * 255
            drawn += list(pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())
        return drawn

    @torch.no_grad()
    def examine(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> tuple[float, dict[str, float]]:
        """Agreement and deviation ratio of the finished images, as they come back from a file."""
        right = 0
        tokens: list[list[Moments]] = []
        step = 2 * self._config.batch
        for start in range(0, len(images), step):
            pixels = torch.from_numpy(images[start : start + step]).to(self._device).permute(0, 3, 1, 2) / 255
            predicted = self._logits(self._model, (pixels - self._generator.mean) / self._generator.std).argmax(1)
            right += int((predicted.cpu().numpy() == labels[start : start + step]).sum())
            if self._targets:
                tokens.append([image_moments(t) for t in self._observation.take()])
        ratio = (
            self._targets.deviation_ratio([_pooled(layer) for layer in zip(*tokens, strict=True)])
            if self._targets
            else {}
        )
        return right / len(images), ratio

    def _noise(self, count: int) -> Tensor:
        return torch.randn(count, self._config.generator.latent, generator=self._random).to(self._device)


def _pooled(parts: Sequence[Moments]) -> Moments:
    """Moments over all images from the moments of each."""
    mean, variance = (torch.cat(values) for values in zip(*parts, strict=True))
    return Moments(mean.mean(0), variance.mean(0) + mean.var(0, correction=0))


def _names(curve: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for terms in curve for name in terms))


def _check(config: SynthesisConfig, count: int) -> None:
    for name, value in (("count", count), ("steps", config.steps), ("harvests", config.harvests)):
        if value < 1:
            raise UsageError(f"{name} is {value}: give at least 1.")
    if config.batch < 2:
        raise UsageError(f"batch is {config.batch}, but BatchNorm in the generator compares images: give at least 2.")


def _check_fit(statistics: Statistics, tokens: Sequence[Tensor], num_classes: int) -> None:
    known = len(statistics.population.counts)
    if known != num_classes:
        raise ModelError(
            f"the statistics know {known} classes, the model {num_classes}: use the model's own statistics."
        )
    for (layer, overall), seen in zip(statistics.overall.items(), tokens, strict=True):
        if overall.mean.shape[-1] != seen.shape[-1]:
            raise ModelError(
                f"the statistics of '{layer}' have {overall.mean.shape[-1]} channels, the model has {seen.shape[-1]}: "
                "use the model's own statistics."
            )


def _missing(statistics: Statistics | None) -> tuple[str, ...]:
    if statistics is None:
        return ("no statistics: L_BNS, L_D and L_C were left out, total variation took their place",)
    if not statistics.centers:
        return ("no layer separates the classes: L_D and L_C were left out",)
    count = len(statistics.population.counts) - len(statistics.population.classes)
    return (f"{count} classes without a center: left out of L_D and L_C",) if count else ()
