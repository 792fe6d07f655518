"""Training of a guide: plain supervised classification of the images that the localizer is trained on."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from toolchain.card import GuideCard
from toolchain.data.dataset import DataSet
from toolchain.data.sources import open_data
from toolchain.errors import TrainingError, UsageError
from toolchain.evaluation import batches
from toolchain.model import checkpoint
from toolchain.model.guide import Guide, guide_preset_for
from toolchain.preprocessing import Preprocessing
from toolchain.progress import Progress, Step, unwatched
from toolchain.training.batches import ImageBatches
from toolchain.training.devices import check_device
from toolchain.training.recipes import Schedule
from toolchain.training.run import Run, image_batches, training_images, window_of

LEARNING_RATE = 3e-3
"""AdamW's, for a network of a few hundred thousand weights that starts from nothing."""
VALIDATED = 64
"""Validation images in one pass."""


@dataclass(frozen=True)
class GuideRun:
    """How to train a guide.

    Attributes:
        localizer: the run of the localizer that it stands beside, which data, images, augmentation, batch size and
            seed are of.
        epochs: passes over the training images.
    """

    localizer: Run
    epochs: int

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UsageError(f"--guide {self.epochs} trains nothing: give at least 1 epoch.")

    def parameters(self) -> dict[str, object]:
        """What the result depends on, but for the localizer's own weights."""
        run, seed = self.localizer, self.localizer.recipe.schedule.seed
        shown = {name: run.recipe.parameters()[name] for name in ("batch_size", "cutmix", "augmentation", "repeats")}
        named = {"preset": run.preset, "data": run.data, "images": run.images}
        return {**named, "epochs": self.epochs, "seed": seed, **shown}


def train_guide(guide: GuideRun, output: Path, step: Step = unwatched) -> float:
    """Train a guide and write it.

    Returns:
        accuracy on the validation images, percent.

    Raises:
        UsageError, DataError: as for training a localizer.
        TrainingError: the loss is no longer finite.
    """
    run = guide.localizer
    check_device(run.device)
    schedule = Schedule(guide.epochs, LEARNING_RATE, warmup_epochs=0.5, seed=run.recipe.schedule.seed)
    window = window_of(run)
    data, validation = training_images(run, window), open_data(run.data, "val", window)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(schedule.seed)
        model = Guide(guide_preset_for(window.image_size), len(data.class_names)).to(run.device)
    images = image_batches(run, data, window, step)
    _fit(model, images, schedule, run.device, step("train guide"))
    model.eval()
    accuracy = _accuracy(model, validation, window, run.device, step("validate guide"))
    checkpoint.save(model, GuideCard(model.preset.name, data.class_names, window), output)
    return accuracy


def _fit(model: nn.Module, images: ImageBatches, schedule: Schedule, device: str, progress: Progress) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay)
    total = schedule.epochs * images.steps
    done = 0
    model.train()
    for epoch in range(schedule.epochs):
        generator = torch.Generator().manual_seed(schedule.seed * 100_003 + epoch)
        for batch in images.epoch(generator):
            done += 1
            optimizer.param_groups[0]["lr"] = schedule.learning_rate * schedule.rate(done / images.steps)
            loss = F.cross_entropy(model(cast(torch.Tensor, batch.inputs).to(device)), batch.targets.to(device))
            if not math.isfinite(float(loss.detach())):
                raise TrainingError(f"the guide's loss became {float(loss.detach())} in step {done}: check the images.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress(done, total, f"loss {float(loss.detach()):.3f}")


@torch.inference_mode()
def _accuracy(model: nn.Module, data: DataSet, window: Preprocessing, device: str, progress: Progress) -> float:
    """Percent of the images that are classified right."""
    correct = done = 0
    for images, labels, _ in batches(data, window, VALIDATED):
        predicted = model(torch.from_numpy(images).to(device)).argmax(1).cpu()
        correct += int((predicted == torch.tensor(labels)).sum())
        progress(done := done + len(labels), len(data))
    return 100 * correct / len(data)
