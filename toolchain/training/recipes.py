"""How to train: one recipe for each data set and purpose, and what may be changed in it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from toolchain.errors import UsageError, chosen
from toolchain.training.mixing import CutMix

LAST, BEST = "last", "best"


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise UsageError(f"--{_option(name)} {value:g} is too low: give {least:g} or more.")


def _positive(name: str, value: float, most: float = math.inf) -> None:
    if not 0 < value <= most:
        bound = f" and at most {most:g}" if most < math.inf else ""
        raise UsageError(f"--{_option(name)} {value:g} cannot be used: give one over 0{bound}.")


def _option(name: str) -> str:
    return name.replace("_", "-")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: passes over the training images.
        learning_rate: at the end of the warm-up, for the head but for its routing path.
        routing_rate: factor on the learning rate of conv3x3 and both routing layers. At the full rate Adam drives the
            routing's sigmoid to 0 within a few steps on strong features, and nothing brings it back.
        weight_decay: AdamW's, on matrices only (not on biases, norms and embeddings).
        warmup_epochs: linear warm-up; may be a fraction of an epoch.
        first_rate: learning rate that the warm-up begins at.
        last_rate: learning rate that the cosine ends at; None: a hundredth of `learning_rate`.
        layer_decay: factor on the learning rate from each block to the one before it; the last block has it once, the
            patch embedding once more than the first block (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT).
        label_smoothing: of the cross-entropy.
        seed: of order, augmentation and drop path.
        bf16: compute in bfloat16 where torch's autocast deems it safe; weights and loss stay float32.
        accumulate: passes that one step's batch is cut into, where the whole of it does not fit in memory.
        ema: decay per step of the moving average of the weights that is kept instead of them; None: no average.
        evaluate_every: epochs from one evaluation on the validation images to the next; 0: only after training.
        keep: `last`, the weights after the last epoch, or `best`, those that did best on the validation images.
    """

    epochs: int
    learning_rate: float
    routing_rate: float = 0.01
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    first_rate: float = 0.0
    last_rate: float | None = None
    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0
    bf16: bool = True
    accumulate: int = 1
    ema: float | None = None
    evaluate_every: int = 0
    keep: str = LAST

    def __post_init__(self) -> None:
        for name, least in {"epochs": 1, "accumulate": 1, "evaluate_every": 0, "seed": 0}.items():
            _at_least(name, getattr(self, name), least)
        _positive("learning_rate", self.learning_rate)
        _positive("layer_decay", self.layer_decay, most=1)
        for name in ("routing_rate", "weight_decay", "warmup_epochs", "first_rate"):
            _at_least(name, getattr(self, name), 0)
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"--ema {self.ema:g} is no decay: give one between 0 and 1, such as 0.999.")
        if self.keep not in (LAST, BEST):
            raise UsageError(f"--keep {self.keep} is unknown: give {LAST} or {BEST}.")
        if self.keep == BEST and not self.evaluate_every:
            raise UsageError("--keep best with --evaluate-every 0 has nothing to choose by: give 1 or more.")

    def rate(self, epochs_done: float) -> float:
        """Factor on the learning rate: linear warm-up, then cosine."""
        first = self.first_rate / self.learning_rate
        last = 0.01 if self.last_rate is None else min(1.0, self.last_rate / self.learning_rate)
        if epochs_done < self.warmup_epochs:
            return first + (1 - first) * (epochs_done / self.warmup_epochs)
        progress = (epochs_done - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Augmentation:
    """What is done to an image each time it is shown, besides the flip.

    Attributes:
        crop: least and largest share of the image's area that a random crop takes; its aspect is 3/4 to 4/3.
        operations: RandAugment's n, operations one after the other; 0: none.
        magnitude: RandAugment's m, of 10.
        magnitude_std: standard deviation of m from image to image.
        jitter: largest relative change of brightness, contrast and saturation.
        erasing: share of the images of which a rectangle is erased.
    """

    crop: tuple[float, float] = (0.08, 1.0)
    operations: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    jitter: float = 0.4
    erasing: float = 0.25


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        schedule: epochs and rates.
        batch_size: images per step, over all processes and passes.
        scaled_for: batch size that the schedule's learning rate is meant for, and in proportion to which it is scaled;
            None: it is meant for any.
        cutmix: how images are mixed.
        drop_path: stochastic depth rate of the last block.
        augmentation: of whole images as they are on disk; None: flips alone, of images held in memory.
        repeats: differently augmented copies of an image in one batch (Hoffer et al. 2020); an epoch keeps its length.
        train_blocks: the last blocks that are trained besides the head, on the cached output of the others; None: all.
        views: augmented views of each image that are cached besides the image and its mirror image.
        tau: published box threshold, for validation images without boxes.
    """

    schedule: Schedule
    batch_size: int = 64
    scaled_for: int | None = None
    cutmix: CutMix = field(default_factory=CutMix)
    drop_path: float = 0.0
    augmentation: Augmentation | None = None
    repeats: int = 1
    train_blocks: int | None = None
    views: int = 0
    tau: float = 0.09

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 1)
        _at_least("views", self.views, 0)
        _at_least("train_blocks", self.train_blocks or 0, 0)
        if not 0 <= self.cutmix.probability <= 1:
            raise UsageError(f"--cutmix {self.cutmix.probability:g} is no share: give one from 0 to 1.")
        if not 0 <= self.drop_path < 1:
            raise UsageError(f"--drop-path {self.drop_path:g} is no rate: give one from 0 to under 1.")
        if self.views and self.train_blocks is None:
            raise UsageError(f"--views {self.views} counts cached views, and nothing is cached: add --train-blocks.")
        if self.views and self.augmentation is None:
            raise UsageError(f"--views {self.views} needs a recipe that augments: add --recipe finetune.")
        if self.train_blocks == 0 and (self.drop_path or self.schedule.layer_decay != 1):
            raise UsageError("--drop-path and --layer-decay act on blocks, and none is trained: leave them out.")

    def effective(self) -> Schedule:
        """The schedule with the learning rate for this batch size."""
        if self.scaled_for is None:
            return self.schedule
        rate = self.schedule.learning_rate * self.batch_size / self.scaled_for
        return replace(self.schedule, learning_rate=rate)

    def parameters(self) -> dict[str, object]:
        """For the sidecar, and to tell whether a training state belongs to this run."""
        return asdict(self)


CUB_TAU, ILSVRC_TAU = 0.09, 0.18
"""Published with LCTR, for protocol `lctr`."""

RELEASE = Recipe(
    Schedule(epochs=80, learning_rate=5e-5, warmup_epochs=5, first_rate=1e-6, last_rate=1e-5),
    batch_size=512,
    scaled_for=512,
    cutmix=CutMix(probability=0),
    drop_path=0.1,
    augmentation=Augmentation(),
    repeats=3,
    tau=CUB_TAU,
)
"""The release's on CUB (spec/lctr.md, "Training recipe of the release"), which smooths no labels and mixes no images.

Ours are the slow routing (`Schedule.routing_rate`) and gradients clipped to a norm of 1.
"""

RECIPES: Mapping[str, Recipe] = {
    "shapes": Recipe(
        Schedule(epochs=26, learning_rate=1e-3, warmup_epochs=0.5), cutmix=CutMix(probability=0.5), tau=CUB_TAU
    ),
    # Strong features and few images: heavy decay, and a routing that hardly moves (at 0.01 accuracy lost 14 points).
    "frozen": Recipe(
        Schedule(
            epochs=30,
            learning_rate=1e-3,
            routing_rate=1e-3,
            weight_decay=0.5,
            warmup_epochs=1,
            label_smoothing=0.1,
        ),
        batch_size=32,
        cutmix=CutMix(probability=0.5),
        augmentation=Augmentation(crop=(0.5, 1.0), operations=0, erasing=0),
        train_blocks=0,
    ),
    # The same where the last blocks move too: at a fraction of the head's rate, on many views of few images.
    "finetune": Recipe(
        Schedule(
            epochs=30,
            learning_rate=1e-3,
            routing_rate=1e-3,
            weight_decay=0.3,
            warmup_epochs=1,
            layer_decay=0.3,
            label_smoothing=0.1,
        ),
        batch_size=32,
        cutmix=CutMix(probability=0.5),
        drop_path=0.1,
        augmentation=Augmentation(crop=(0.5, 1.0), operations=0, erasing=0),
        train_blocks=3,
        views=6,
    ),
    "cub": RELEASE,
    "ilsvrc": replace(
        RELEASE,
        schedule=replace(RELEASE.schedule, epochs=14, learning_rate=5e-4),
        batch_size=1024,
        tau=ILSVRC_TAU,
    ),
}


def recipe_named(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        UsageError: there is none.
    """
    return chosen("recipe", name, RECIPES)


def recipe_name(data: str, train_blocks: int | None) -> str:
    """The recipe for a data set as `--data` names it, where nobody named one."""
    if train_blocks is not None:
        return "finetune" if train_blocks else "frozen"
    kind = data.partition(":")[0]
    return kind if kind in ("shapes", "ilsvrc") else "cub"


def adjusted(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with some of its values replaced; None leaves a value as it is.

    Args:
        recipe: to start from.
        changes: `cutmix` (probability), or a field of `Recipe` or `Schedule`.

    Raises:
        UsageError: a value that cannot be meant, or values that do not go together.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if given.get("keep") == BEST:
        given.setdefault("evaluate_every", recipe.schedule.evaluate_every or 1)
    probability = given.pop("cutmix", recipe.cutmix.probability)
    ours = {f.name for f in fields(Recipe)}
    return replace(
        recipe,
        schedule=replace(recipe.schedule, **{name: value for name, value in given.items() if name not in ours}),
        cutmix=replace(recipe.cutmix, probability=float(probability)),
        **{name: value for name, value in given.items() if name in ours},
    )
