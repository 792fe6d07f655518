"""One training run: data, model, loop, threshold, checkpoint."""

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric

from toolchain.artifacts import sha256_of
from toolchain.card import ModelCard
from toolchain.data.dataset import DataSet
from toolchain.data.pool import pool_from_dataset
from toolchain.data.sources import open_data, preprocessing_for
from toolchain.errors import UsageError
from toolchain.model import checkpoint
from toolchain.model.lctr import Lctr
from toolchain.model.presets import Preset, preset_named
from toolchain.preprocessing import Preprocessing
from toolchain.progress import Step, unwatched
from toolchain.training.augmentation import AugmentedSource, uncropped
from toolchain.training.batches import Batches, CachedBatches, ImageBatches, Share
from toolchain.training.cache import frozen_outputs
from toolchain.training.devices import fabric_for
from toolchain.training.log import Curves, EpochLog, log_of, write_csv
from toolchain.training.loop import train
from toolchain.training.recipes import Recipe
from toolchain.training.sources import PoolSource, Source
from toolchain.training.validation import Validated, Validator

MOST_WORKERS = 8


@dataclass(frozen=True)
class Run:
    """What to train on what.

    Attributes:
        preset: name of the architecture.
        data: as for `--data`.
        recipe: how.
        init: a checkpoint to start from, its backbone, and its head where it is of the same classes; None: nothing.
        images: number of training images, all by default.
        device: `cpu` or `cuda`.
        workers: processes that decode and augment ahead; None: none on a CPU, which has other work, a few for a GPU.
        tensorboard: folder for TensorBoard's event files; None: none are written.
    """

    preset: str
    data: str
    recipe: Recipe
    init: Path | None = None
    images: int | None = None
    device: str = "cpu"
    workers: int | None = None
    tensorboard: Path | None = None

    def identity(self) -> dict[str, object]:
        """What the result depends on."""
        return {
            "preset": self.preset,
            "data": self.data,
            "images": self.images,
            "init": sha256_of(self.init) if self.init else None,
            "recipe": self.recipe.parameters(),
        }


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        logs: of each epoch.
        validated: what the validation images said of the result, and where its tau is from.
        started: what was taken from `init`, in words; empty without one.
    """

    logs: tuple[EpochLog, ...]
    validated: Validated
    started: str


def train_localizer(run: Run, output: Path, step: Step = unwatched) -> Trained | None:
    """Train a localizer from image-level labels and write it to `output`.

    Beside it, `output.state` holds what is needed to resume, and is removed at the end; `log_of(output)` tells of each
    epoch. Boxes are those of the validation images alone: they choose tau after training, and the weights to keep where
    the recipe keeps the best.

    Returns:
        None in all processes but the first, which write nothing.

    Raises:
        UsageError: options that do not go together.
        DataError, ModelError, TrainingError: see there.
    """
    preset = preset_named(run.preset)
    _check(run, preset)
    fabric = fabric_for(run.device)
    Share(fabric.global_rank, fabric.world_size, run.recipe.schedule.accumulate).passes(run.recipe.batch_size)
    step = step if fabric.is_global_zero else unwatched
    window = window_of(run)
    data = training_images(run, window)
    validation = open_data(run.data, "val", window)
    # Before the training, not after it: whether its result can be judged decides what there is to wait for.
    # One image tells: no data set opens whose validation images have boxes in part.
    validator = Validator(validation, window, bool(validation[0].boxes), run.recipe.tau)
    torch.manual_seed(run.recipe.schedule.seed)
    model = Lctr(preset, len(data.class_names), run.recipe.drop_path)
    started = checkpoint.load_start(model, data.class_names, run.init) if run.init else ""
    model.to(fabric.device)
    frozen_blocks = _freeze(model, run.recipe.train_blocks)
    batches = _batches(run, fabric, model, frozen_blocks, data, window, step)
    state = output.with_name(output.name + ".state")
    with closing(Curves(run.tensorboard if fabric.is_global_zero else None)) as curves:

        def tell(so_far: list[EpochLog]) -> None:
            write_csv(so_far, log_of(output))
            curves.write(so_far)

        logs = train(
            fabric,
            model,
            batches,
            run.recipe.effective(),
            state=state,
            identity=repr(run.identity()),
            frozen_blocks=frozen_blocks,
            evaluate=validator,
            epoch_end=tell,
            progress=step("train"),
        )
    if not fabric.is_global_zero:
        return None
    validated = validator(model, step("choose tau" if validator.boxed else "validate"))
    checkpoint.save(model, ModelCard(preset.name, data.class_names, window, validated.tau), output)
    state.unlink(missing_ok=True)
    return Trained(tuple(logs), validated, started)


def window_of(run: Run) -> Preprocessing:
    """What every network that is trained on the run's data does with images."""
    return preprocessing_for(run.data, preset_named(run.preset).image_size)


def training_images(run: Run, window: Preprocessing) -> DataSet:
    """The run's training images, enough for a batch."""
    data = open_data(run.data, "train", window, run.images)
    if len(data) < run.recipe.batch_size:
        raise UsageError(
            f"{len(data)} training images do not fill one batch of {run.recipe.batch_size}: lower --batch-size or give "
            "more images."
        )
    return data


def _check(run: Run, preset: Preset) -> None:
    """What can be told from the options alone."""
    blocks = run.recipe.train_blocks
    if blocks is not None and run.init is None:
        raise UsageError(
            "--train-blocks or --freeze-backbone without --init would freeze random weights: name a backbone with "
            "--init."
        )
    if blocks is not None and blocks >= preset.depth:
        raise UsageError(
            f"--train-blocks {blocks} leaves none of {preset.name}'s {preset.depth} blocks frozen: give fewer, or "
            "choose a recipe that trains all."
        )
    if run.workers is not None and run.workers < 0:
        raise UsageError(f"--workers {run.workers} cannot be meant: give 0 or more.")


def _freeze(model: Lctr, train_blocks: int | None) -> int:
    """Let only the last blocks and what follows them require a gradient; returns how many blocks do not."""
    if train_blocks is None:
        return 0
    frozen = model.preset.depth - train_blocks
    trained = [*(f"blocks.{k}." for k in range(frozen, model.preset.depth)), *checkpoint.HEAD]
    if train_blocks:
        trained.append("norm.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(tuple(trained))
    return frozen


def image_batches(run: Run, data: DataSet, window: Preprocessing, step: Step, world: int = 1) -> ImageBatches:
    """Batches of whole images: augmented as the recipe says, or held in memory.

    Args:
        run: says how.
        data: its training images.
        window: from image file to network.
        step: where the progress of decoding goes.
        world: processes that train together on one machine.
    """
    recipe = run.recipe
    source: Source | None = _augmented(run, world, window)
    if source is None:
        source = PoolSource(pool_from_dataset(data, step("decode images")), window)
    grid = preset_named(run.preset).grid
    return ImageBatches(source, recipe.batch_size, recipe.cutmix, grid, len(data.class_names), recipe.repeats)


def _batches(
    run: Run, fabric: Fabric, model: Lctr, frozen_blocks: int, data: DataSet, window: Preprocessing, step: Step
) -> Batches:
    recipe = run.recipe
    if not frozen_blocks:
        return image_batches(run, data, window, step, fabric.world_size)
    augmented = _augmented(run, fabric.world_size, window) if recipe.views else None
    pool = pool_from_dataset(data, step("decode images"))
    cached = frozen_outputs(
        model,
        frozen_blocks,
        PoolSource(pool, window),
        augmented,
        views=recipe.views,
        seed=recipe.schedule.seed,
        progress=step("backbone features"),
    )
    labels = torch.from_numpy(pool.labels)
    return CachedBatches(cached, labels, recipe.batch_size, recipe.cutmix, len(data.class_names))


def _augmented(run: Run, world: int, window: Preprocessing) -> AugmentedSource | None:
    if run.recipe.augmentation is None:
        return None
    ahead = min(MOST_WORKERS, len(os.sched_getaffinity(0)) // world) if run.device == "cuda" else 0
    data = open_data(run.data, "train", uncropped(window), run.images)
    return AugmentedSource(data, run.recipe.augmentation, window, ahead if run.workers is None else run.workers)
