"""What the study measures, how much of it, and how long two cores take: the full plan, the quick one and the least."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from study.arms import NOISE, REAL, SEED_IMAGES, TOKEN
from study.widths import W6A6, W8A6, W8A8, Width

BUNDLED_NAME, PHOTOGRAPHS, BATCHNORM, FINE_TUNING, SPEED = PARTS = (
    "bundled",
    "photographs",
    "batchnorm",
    "fine-tuning",
    "speed",
)
"""What can be measured alone: a localizer each, a pretrained and a trained BatchNorm network, the clock."""

DECIDING_ARMS = (TOKEN, REAL)
"""Arms between which a small difference decides; every one on so many images would take ten minutes more."""


@dataclass(frozen=True)
class Synthesis:
    """How much of a method.

    Attributes:
        count: images.
        steps: of the optimizer.
        step_seconds: measured on two idle cores, for the estimate.
    """

    count: int
    steps: int
    step_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """That it will take, about."""
        return self.steps * self.step_seconds


@dataclass(frozen=True)
class LocalizerPlan:
    """One localizer.

    Attributes:
        name: in tables.
        model: checkpoint with statistics beside it.
        data: as for `--data`.
        test_images: held-out images.
        deciding_images: likewise, for the arms in `DECIDING_ARMS` at W8A8; None: `test_images` will do.
        images: in the arms noise and real.
        seeds: runs of each arm.
        routes: arm -> how much of it.
        guide_epochs: for which a guide is trained where none stands beside the model.
        guide_images: that it is trained on; None: all.
        guide_seconds: for the estimate.
        calibration_seconds: of one image, likewise, over all passes.
        evaluation_seconds: of one image at one width, likewise.
        widths: bits.
    """

    name: str
    model: Path
    data: str
    test_images: int
    images: int
    seeds: int
    routes: Mapping[str, Synthesis]
    guide_epochs: int
    deciding_images: int | None = None
    guide_images: int | None = None
    guide_seconds: float = 0.0
    calibration_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    widths: tuple[Width, ...] = (W8A8, W8A6, W6A6)

    @property
    def arms(self) -> tuple[str, ...]:
        """In the order of the tables."""
        return (NOISE, SEED_IMAGES, *self.routes, REAL)

    @property
    def seconds(self) -> float:
        """That it will take, about."""
        made = sum(route.seconds for route in self.routes.values())
        images = sum(route.count for route in self.routes.values()) + 3 * self.images
        evaluated = len(self.arms) * len(self.widths) * self.test_images
        evaluated += len(DECIDING_ARMS) * (self.deciding_images or 0)
        each_seed = made + images * self.calibration_seconds + evaluated * self.evaluation_seconds
        return self.guide_seconds + self.seeds * each_seed


@dataclass(frozen=True)
class BatchNormPlan:
    """The pretrained BatchNorm network on photographs.

    Attributes:
        seeds: runs of each arm.
        synthesis: how much of zero-shot FDDA.
        images: in the other arms.
        test_images: held-out photographs.
        evaluation_seconds: of one image at one width, for the estimate.
        widths: bits.
    """

    seeds: int
    synthesis: Synthesis
    images: int
    test_images: int
    evaluation_seconds: float = 0.0
    widths: tuple[Width, ...] = (W8A8, W6A6)

    @property
    def seconds(self) -> float:
        """That it will take, about."""
        evaluated = 3 * (len(self.widths) * self.test_images + 2 * self.images)
        return self.seeds * (self.synthesis.seconds + evaluated * self.evaluation_seconds)


@dataclass(frozen=True)
class FineTuningPlan:
    """The small BatchNorm network, trained here and fine-tuned at few bits.

    Attributes:
        train_images: of `shapes`.
        train_epochs: over them.
        test_images: held out.
        validation_images: that learning rates are chosen on.
        seeds: runs of each arm.
        synthesis: of every synthetic arm.
        epochs: of the fine-tuning, over `synthesis.count` images.
        learning_rates: that each arm has the best of.
        choosing_seeds: the first so many runs of each arm say which that is.
        bits: of weights and activations, in every layer.
        train_seconds: for the estimate.
        epoch_seconds: likewise.
    """

    train_images: int
    train_epochs: int
    test_images: int
    validation_images: int
    seeds: int
    synthesis: Synthesis
    epochs: int
    learning_rates: tuple[float, ...]
    choosing_seeds: int = 1
    bits: int = 4
    train_seconds: float = 0.0
    epoch_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """That it will take, about."""
        # Students at the rate that is chosen are tuned once.
        runs = 4 * (self.seeds + (len(self.learning_rates) - 1) * self.choosing_seeds)
        made = (self.seeds * 3 + 1) * self.synthesis.seconds
        return self.train_seconds + made + runs * self.epochs * self.epoch_seconds


@dataclass(frozen=True)
class SpeedPlan:
    """A guide at 96 pixels by the clock; whatever else is told of speed was made for the other parts.

    Attributes:
        count: images.
        steps: of the optimizer.
        seconds: for the estimate.
    """

    count: int
    steps: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """All parts; None: left out."""

    localizers: tuple[LocalizerPlan, ...]
    batchnorm: BatchNormPlan | None
    fine_tuning: FineTuningPlan | None
    speed: SpeedPlan | None

    @property
    def seconds(self) -> dict[str, float]:
        """That each part will take, about."""
        others = {BATCHNORM: self.batchnorm, FINE_TUNING: self.fine_tuning, SPEED: self.speed}
        found: dict[str, float] = {localizer.name: localizer.seconds for localizer in self.localizers}
        return found | {name: part.seconds for name, part in others.items() if part}

    def of(self, parts: Collection[str]) -> "Plan":
        """These parts alone."""
        return Plan(
            tuple(localizer for localizer in self.localizers if localizer.name in parts),
            self.batchnorm if BATCHNORM in parts else None,
            self.fine_tuning if FINE_TUNING in parts else None,
            self.speed if SPEED in parts else None,
        )
