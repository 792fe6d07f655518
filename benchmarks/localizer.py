"""What our LCTR gains over the published forward: latency, bytes out of the graph, training step, compiled layers.

    python benchmarks/localizer.py -o docs/benchmarks/localizer.json

The backbone is the one of `make finetuned` where that is there, and the head a random one, for it has other classes.
Both sides run in one process on the same weights and images, interleaved; ratios are of medians, with their range over
the rounds. Outputs are compared first: a forward that computes something else is not timed.
"""

import argparse
import copy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from footprint import footprint
from numpy.typing import NDArray
from record import written
from released import ReleasedForward
from subject import TOLERANCE, add_options, eager, model_from_options, require_equal

from calib.image_set import noise
from engines.backend import BuildOptions, Feeds
from engines.benchmark import Settings, benchmark
from engines.build import build
from engines.inspect import inspect
from engines.memory import MemorySession
from engines.registry import open_engine
from exporters.files import write_onnx
from exporters.torch_export import onnx_from_torch
from toolchain.comparison import FEEDS, feeds_from_images
from toolchain.model.deployment import DeployedLctr
from toolchain.model.lctr import Lctr
from toolchain.training.learner import Learner

RELEASED, EAGER, DEPLOYED = "released forward, torch eager", "our plain model, torch eager", "deployed, ONNX Runtime"
STEPS = {
    RELEASED: (True, False),
    f"{RELEASED}, bfloat16": (True, True),
    "ours, float32": (False, False),
    "ours": (False, True),
}
"""Training steps: whether the released one, and whether in bfloat16, which `lctr train` computes in."""
BF16_TOLERANCE = 1e-2
BATCHES = (1, 8)
TRAINING_BATCH = 32


def main() -> None:
    """Measure and write the record."""
    options = _options()
    torch.set_num_threads(options.threads)
    model, weights = model_from_options(options)
    if options.memory_of:
        _train_once(model, options.memory_of)
        return
    record: dict[str, Any] = {
        "preset": options.preset,
        "classes": options.classes,
        "weights": weights,
        "threads": options.threads,
    }
    with tempfile.TemporaryDirectory() as folder:
        record["latency"] = _latency(model, Path(folder), Settings(options.warmup, options.rounds, options.iterations))
        record["bytes_out_per_image"] = _bytes_out(model)
        record["training_step"] = _training(model, options)
        record["compiled"] = _compiled(model, Path(folder))
    print(written(record, options.output))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--memory-of", choices=STEPS, help="One training step, its peak memory in bytes.")
    return parser.parse_args()


def _latency(model: Lctr, folder: Path, settings: Settings) -> dict[str, Any]:
    window = model.preset.image_size
    path = folder / "deployed.onnx"
    write_onnx(onnx_from_torch(DeployedLctr(model), image_size=window, metadata={}), path)
    feeds = feeds_from_images(noise(FEEDS * max(BATCHES), window, 0), BATCHES)
    with open_engine(path) as session:
        sessions = {RELEASED: eager(ReleasedForward(model)), EAGER: eager(model), DEPLOYED: session}
        for batch in feeds:
            require_equal({name: s.run(batch[0]) for name, s in sessions.items()})
        return benchmark(sessions, feeds, settings).as_dict()


def _bytes_out(model: Lctr) -> dict[str, int]:
    """Float32 that a caller gets per image: the release hands out all class maps and every block's attention."""
    patches, classes, layers = model.preset.grid**2, model.num_classes, model.preset.depth
    attention = layers * (1 + patches) ** 2
    return {
        RELEASED: 4 * (classes * (1 + patches) + attention),
        DEPLOYED: 4 * (classes + patches),
    }


def _training(model: Lctr, options: argparse.Namespace) -> dict[str, Any]:
    """Time of a step, interleaved in this process; peak memory of one, each in a process of its own."""
    model.train()
    images = noise(TRAINING_BATCH, model.preset.image_size, 0)
    sessions = {name: MemorySession(_step(model, name), outputs=("loss",)) for name in STEPS}
    losses = {name: float(s.run({"image": images})["loss"][0]) for name, s in sessions.items()}
    for name, (_, bf16) in STEPS.items():
        if not np.isclose(losses[name], losses[RELEASED], rtol=BF16_TOLERANCE if bf16 else TOLERANCE):
            sys.exit(f"the losses {losses} differ: nothing was timed.")
    timed = benchmark(sessions, [[{"image": images}]], Settings(warmup=1, rounds=5, iterations=1)).as_dict()
    command = [sys.executable, __file__, "--preset", options.preset, "--classes", str(options.classes)]
    command += ["--threads", str(options.threads)]
    command += ["--backbone", str(options.backbone)] if options.backbone else []
    memory = {
        name: int(subprocess.run([*command, "--memory-of", name], check=True, capture_output=True, text=True).stdout)
        for name in sessions
    }
    model.eval()
    ratios = {name: peak / memory[RELEASED] for name, peak in memory.items()}
    return {"latency": timed, "peak_bytes": memory, "memory_ratio": ratios}


def _step(model: Lctr, name: str) -> Callable[[Feeds], dict[str, NDArray[Any]]]:
    """Forward and backward of one batch. The optimizer's share is the same on both sides and left out."""
    as_released, bf16 = STEPS[name]
    released, learner = ReleasedForward(model), Learner(model, frozen_blocks=0, bf16=bf16)

    def logits(images: torch.Tensor) -> torch.Tensor:
        if as_released:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return released.logits(images).float()
        found: torch.Tensor = learner(images)[0]
        return found

    def run(feeds: Feeds) -> dict[str, NDArray[Any]]:
        images = torch.from_numpy(feeds["image"])
        loss = F.cross_entropy(logits(images), torch.arange(len(images)) % model.num_classes)
        model.zero_grad(set_to_none=True)
        loss.backward()
        return {"loss": loss.detach().numpy()[None]}

    return run


def _train_once(model: Lctr, name: str) -> None:
    """Print what a step adds to the memory of a process that holds weights and images already, at its peak."""
    images = noise(TRAINING_BATCH, model.preset.image_size, 0)
    model.train()
    step = _step(model, name)
    print(int(footprint(lambda: step({"image": images}))["added_bytes"]))


def _compiled(model: Lctr, folder: Path) -> dict[str, Any]:
    """Layers and fused attention kernels that TensorRT-RTX compiles ahead of time in FP16: naive export and ours."""
    forms = {"naive": _NaiveHalf(copy.deepcopy(model).half()), "deployed": DeployedLctr(model, precision=torch.float16)}
    found = {}
    for name, form in forms.items():
        path = folder / f"{name}.onnx"
        write_onnx(onnx_from_torch(form, image_size=model.preset.image_size, metadata={}), path)
        build(path, "tensorrt-rtx", path.with_suffix(".engine"), BuildOptions(), min_coverage=0)
        seen = inspect(path.with_suffix(".engine"))
        found[name] = {
            "layers": seen.layers,
            "fused_attention": seen.fused_attention,
            "counts": seen.counts,
            "engine_bytes": path.with_suffix(".engine").stat().st_size,
        }
    return found


class _NaiveHalf(torch.nn.Module):
    """The plain model in FP16, as a user would export it."""

    def __init__(self, model: Lctr) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, map_ = self.model(images.half())
        return logits.float(), map_.float()


if __name__ == "__main__":
    main()
