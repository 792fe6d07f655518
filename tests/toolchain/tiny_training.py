"""A localizer of two tiny blocks on 16 x 16 pixels, and data for it: an epoch takes milliseconds.

As a program, `python tiny_training.py {steps|run} FOLDER` trains in a process that a test may kill, or beside others.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image

from toolchain.data.pool import Pool
from toolchain.model.lctr import Lctr
from toolchain.model.presets import PRESETS, Preset
from toolchain.preprocessing import Preprocessing
from toolchain.training.batches import ImageBatches
from toolchain.training.devices import fabric_for
from toolchain.training.log import EpochLog
from toolchain.training.loop import train
from toolchain.training.mixing import CutMix
from toolchain.training.recipes import Recipe, Schedule
from toolchain.training.run import Run, Trained, train_localizer
from toolchain.training.sources import PoolSource

TINY = Preset("tiny", image_size=16, patch_size=8, dim=8, depth=2, heads=2)
PLAIN = Preprocessing(16, 16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SCHEDULE = Schedule(epochs=3, learning_rate=1e-2)
RECIPE = Recipe(replace(SCHEDULE, bf16=False), batch_size=4, cutmix=CutMix(0.5))
CLASSES = 3


def tiny_model(drop_path: float = 0.3) -> Lctr:
    torch.manual_seed(0)
    return Lctr(TINY, CLASSES, drop_path)


def tiny_pool(count: int = 12) -> Pool:
    """Class c is bright in channel c."""
    labels = np.arange(count) % CLASSES
    images = np.random.default_rng(0).integers(0, 100, (count, 16, 16, 3), dtype=np.uint8)
    images[np.arange(count), :, :, labels] += 120
    return Pool(images, labels)


def tiny_batches(cutmix: CutMix | None = None, pool: Pool | None = None, batch_size: int = 4) -> ImageBatches:
    """Unmixed by default."""
    source = PoolSource(pool or tiny_pool(), PLAIN)
    return ImageBatches(source, batch_size, cutmix or CutMix(probability=0), TINY.grid, CLASSES)


def alone() -> Fabric:
    return fabric_for("cpu")


def trained(
    state: Path, schedule: Schedule = SCHEDULE, model: Lctr | None = None, **others
) -> tuple[Lctr, list[EpochLog]]:
    model = model or tiny_model()
    options = {"identity": "run", "save_seconds": 0} | others
    return model, train(alone(), model, tiny_batches(CutMix()), schedule, state=state, **options)


def untimed(logs: list[EpochLog]) -> list[EpochLog]:
    return [replace(log, seconds=0) for log in logs]


def same_weights(first: Lctr, second: Lctr) -> bool:
    others = second.state_dict()
    return all(torch.equal(value, others[name]) for name, value in first.state_dict().items())


def cub_folder(root: Path, of_class: int = 10) -> Path:
    """Three classes of bright squares in CUB-200-2011's layout; the last two of each are test images."""
    lists: dict[str, list[str]] = {
        name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    }
    for number in range(CLASSES * of_class):
        label, index = number // of_class, number % of_class
        image = np.random.default_rng(number).integers(0, 90, (20, 26, 3), dtype=np.uint8)
        image[4:16, 6:20, label] += 150
        path = root / "images" / f"{label}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        for name, value in (
            ("images", f"{label}/{index}.png"),
            ("image_class_labels", label + 1),
            ("train_test_split", int(index < of_class - 2)),
            ("bounding_boxes", "6 4 14 12"),
        ):
            lists[name].append(f"{number + 1} {value}")
    lists["classes"] = [f"{label + 1} class{label}" for label in range(CLASSES)]
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def run_on(folder: Path, output: Path, recipe: Recipe = RECIPE, **others) -> Trained | None:
    """A whole run of the tiny preset, which must be known (fixture `tiny_preset`)."""
    return train_localizer(Run(TINY.name, f"cub:{folder}", recipe, **others), output)


def _wait(done: int, total: int, note: str = "") -> None:
    """Stand still until whoever reads our output says so."""
    print(done, flush=True)  # noqa: T201 (the protocol with the test)
    sys.stdin.readline()


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "steps":
        trained(folder / "state", progress=_wait)
    else:
        PRESETS[TINY.name] = TINY
        run_on(folder / "data", folder / "model.safetensors")
