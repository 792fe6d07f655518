"""One training run: data, model, loop, threshold, checkpoint."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from toolchain.artifacts import sha256_of
from toolchain.card import ModelCard
from toolchain.data.pool import Pool, pool_from_dataset
from toolchain.data.sources import open_data, preprocessing_for
from toolchain.errors import UsageError
from toolchain.evaluation import Evaluation, choose_tau, collect_outputs, evaluate
from toolchain.model import checkpoint
from toolchain.model.lctr import Lctr
from toolchain.model.prediction import predictor
from toolchain.model.presets import preset_named
from toolchain.preprocessing import Preprocessing
from toolchain.progress import Step, unwatched
from toolchain.training.batches import Batches, CueBatches, CutMix, ImageBatches, cached_cues
from toolchain.training.loop import EpochLog, Schedule, train


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        schedule: epochs and rates.
        batch_size: images per step.
        cutmix: how images are mixed.
        drop_path: stochastic depth rate of the last block; not used by a frozen backbone.
    """

    schedule: Schedule
    batch_size: int = 64
    cutmix: CutMix = field(default_factory=CutMix)
    drop_path: float = 0.0

    def parameters(self) -> dict[str, object]:
        """For the sidecar, and to tell whether a training state belongs to this run."""
        return asdict(self)


FROM_SCRATCH = Recipe(Schedule(epochs=26, learning_rate=1e-3, warmup_epochs=0.5), cutmix=CutMix(probability=0.5))
FROZEN_BACKBONE = Recipe(
    Schedule(epochs=30, learning_rate=1e-3, routing_rate=1e-3, weight_decay=0.5, warmup_epochs=1, label_smoothing=0.1),
    batch_size=32,
    cutmix=CutMix(probability=0.5),
)
"""Strong features and few images: heavy decay, and a routing that hardly moves (at 0.01 accuracy lost 14 points)."""


@dataclass(frozen=True)
class Run:
    """What to train on what.

    Attributes:
        preset: name of the architecture.
        data: as for `--data`.
        recipe: how.
        init: a checkpoint to start from, its backbone, and its head where it is of the same classes; None: nothing.
        freeze_backbone: train the head alone, on cached features of the backbone; needs `init`.
        images: number of training images, all by default.
        device: `cpu` or `cuda`.
    """

    preset: str
    data: str
    recipe: Recipe
    init: Path | None = None
    freeze_backbone: bool = False
    images: int | None = None
    device: str = "cpu"

    def identity(self) -> dict[str, object]:
        """What the result depends on."""
        return {
            "preset": self.preset,
            "data": self.data,
            "images": self.images,
            "init": sha256_of(self.init) if self.init else None,
            "freeze_backbone": self.freeze_backbone,
            "recipe": self.recipe.parameters(),
        }


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        logs: of each epoch.
        validation: metrics on the validation images, where tau was chosen.
        started: what was taken from `init`, in words; empty without one.
    """

    logs: tuple[EpochLog, ...]
    validation: Evaluation
    started: str


def train_localizer(run: Run, output: Path, step: Step = unwatched) -> Trained:
    """Train a localizer from image-level labels and write it to `output`.

    Beside it, `output.state` holds what is needed to resume; it is removed at the end. Boxes are read once, after
    training: those of the validation images, to choose tau.

    Raises:
        UsageError: options that do not go together.
        DataError, ModelError, TrainingError: see there.
    """
    if run.freeze_backbone and run.init is None:
        raise UsageError("--freeze-backbone without --init would freeze random weights: name a backbone with --init.")
    if run.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda needs an NVIDIA GPU and a CUDA build of torch, and there is none: use cpu.")
    preset = preset_named(run.preset)
    preprocessing = preprocessing_for(run.data, preset.image_size)
    data = open_data(run.data, "train", preprocessing, run.images)
    validation = open_data(run.data, "val", preprocessing)
    torch.manual_seed(run.recipe.schedule.seed)
    model = Lctr(preset, len(data.class_names), run.recipe.drop_path)
    started = checkpoint.load_start(model, data.class_names, run.init) if run.init else ""
    model.to(run.device)
    pool = pool_from_dataset(data, step("decode images"))
    if len(pool.labels) < run.recipe.batch_size:
        raise UsageError(
            f"{len(pool.labels)} training images do not fill one batch of {run.recipe.batch_size}: "
            "lower --batch-size or give more images."
        )
    state = output.with_name(output.name + ".state")
    logs = train(
        model,
        _batches(run, model, pool, preprocessing, step),
        run.recipe.schedule,
        state=state,
        identity=repr(run.identity()),
        progress=step("train"),
    )
    (outputs,) = collect_outputs([predictor(model)], validation, preprocessing, progress=step("choose tau"))
    tau = choose_tau(outputs)
    checkpoint.save(model, ModelCard(preset.name, data.class_names, preprocessing, tau), output)
    state.unlink(missing_ok=True)
    return Trained(tuple(logs), evaluate(outputs, tau), started)


def _batches(run: Run, model: Lctr, pool: Pool, preprocessing: Preprocessing, step: Step) -> Batches:
    recipe = run.recipe
    if not run.freeze_backbone:
        return ImageBatches(pool, preprocessing, recipe.batch_size, recipe.cutmix)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(checkpoint.HEAD)
    cues = cached_cues(model, pool, preprocessing, progress=step("backbone features"))
    return CueBatches(cues, torch.from_numpy(pool.labels), recipe.batch_size, recipe.cutmix)


def adjusted(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with some of its values replaced; None leaves a value as it is.

    Args:
        recipe: to start from.
        changes: `batch_size`, `drop_path`, `cutmix` (probability), or a field of `Schedule`.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    own = {name: given.pop(name) for name in ("batch_size", "drop_path") if name in given}
    probability = given.pop("cutmix", recipe.cutmix.probability)
    return replace(
        recipe,
        schedule=replace(recipe.schedule, **given),
        cutmix=replace(recipe.cutmix, probability=float(probability)),
        **own,
    )
