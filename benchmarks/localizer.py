"""What our LCTR gains over the published forward: latency, bytes out of the graph, training step, compiled layers.

    python benchmarks/localizer.py -o docs/benchmarks/localizer.json

The backbone is the one of `make finetuned` where that is there, and the head a random one, for it has other classes.
Both sides run in one process on the same weights and images, interleaved; ratios are of medians, with their range over
the rounds. Outputs are compared first: a forward that computes something else is not timed.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from released import ReleasedForward

from calib.image_set import noise
from engines.backend import BuildOptions, Feeds
from engines.benchmark import Settings, benchmark
from engines.build import build
from engines.inspect import inspect
from engines.memory import MemorySession
from engines.registry import open_engine
from exporters.files import write_onnx
from exporters.torch_export import onnx_from_torch
from toolchain.artifacts import machine, versions
from toolchain.comparison import FEEDS, feeds_from_images
from toolchain.model.checkpoint import load_start
from toolchain.model.deployment import DeployedLctr
from toolchain.model.lctr import Lctr
from toolchain.model.presets import preset_named
from toolchain.training.learner import Learner

RELEASED, EAGER, DEPLOYED = "released forward, torch eager", "our plain model, torch eager", "deployed, ONNX Runtime"
STEPS = {
    RELEASED: (True, False),
    f"{RELEASED}, bfloat16": (True, True),
    "ours, float32": (False, False),
    "ours": (False, True),
}
"""Training steps: whether the released one, and whether in bfloat16, which `lctr train` computes in."""
FINETUNED = Path(".photos/finetuned.safetensors")
TOLERANCE = 1e-4
BF16_TOLERANCE = 1e-2
BATCHES = (1, 8)
TRAINING_BATCH = 32


def main() -> None:
    """Measure and write the record."""
    options = _options()
    torch.set_num_threads(options.threads)
    model, weights = _model(options)
    if options.memory_of:
        _train_once(model, options.memory_of)
        return
    record: dict[str, Any] = {
        "preset": options.preset,
        "classes": options.classes,
        "weights": weights,
        "threads": options.threads,
        "machine": machine(),
        "versions": versions(),
    }
    with tempfile.TemporaryDirectory() as folder:
        record["latency"] = _latency(model, Path(folder), Settings(options.warmup, options.rounds, options.iterations))
        record["bytes_out_per_image"] = _bytes_out(model)
        record["training_step"] = _training(model, options)
        record["compiled"] = _compiled(model, Path(folder))
    text = json.dumps(record, indent=1, default=str)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")
    print(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="lctr-small")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--backbone", type=Path, default=FINETUNED, help="Random weights where it is not there.")
    parser.add_argument("--memory-of", choices=STEPS, help="One training step, its peak memory in bytes.")
    return parser.parse_args()


def _model(options: argparse.Namespace) -> tuple[Lctr, str]:
    """A model, and what its weights are, in words.

    Speed does not depend on them, but equality shows only where every one of them counts.
    """
    torch.manual_seed(0)
    model = Lctr(preset_named(options.preset), options.classes).eval()
    weights = f"random: {options.backbone} is not there"
    if options.backbone.exists():
        weights = f"{load_start(model, (), options.backbone)} of {options.backbone}, the rest random"
    print(f"Weights: {weights}.", file=sys.stderr)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_routing_fn_two" in name:
                parameter.normal_(0, 0.05)
    return model, weights


def _latency(model: Lctr, folder: Path, settings: Settings) -> dict[str, Any]:
    window = model.preset.image_size
    path = folder / "deployed.onnx"
    write_onnx(onnx_from_torch(DeployedLctr(model), image_size=window, metadata={}), path)
    feeds = feeds_from_images(noise(FEEDS * max(BATCHES), window, 0), BATCHES)
    with open_engine(path) as session:
        sessions = {RELEASED: _eager(ReleasedForward(model)), EAGER: _eager(model), DEPLOYED: session}
        for batch in feeds:
            _require_equal({name: s.run(batch[0]) for name, s in sessions.items()})
        return benchmark(sessions, feeds, settings).as_dict()


def _eager(model: torch.nn.Module) -> MemorySession:
    """A torch module behind the interface of an engine."""

    @torch.inference_mode()
    def run(feeds: Feeds) -> dict[str, NDArray[Any]]:
        outputs = model(torch.from_numpy(feeds["image"]))
        return {"logits": outputs[0].numpy(), "map": outputs[1].numpy()}

    return MemorySession(run, outputs=("logits", "map"))


def _require_equal(outputs: dict[str, dict[str, NDArray[Any]]]) -> None:
    reference = outputs[RELEASED]
    for name, found in outputs.items():
        for output, expected in reference.items():
            error = float(np.abs(found[output] - expected).max() / np.abs(expected).max())
            if not error <= TOLERANCE:
                sys.exit(f"'{output}' of {name} deviates by {error:.1e} of its largest value: nothing was timed.")


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
    command += ["--threads", str(options.threads), "--backbone", str(options.backbone)]
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
    # Linux forgets the peak so far: imports and initialization may have needed more than the step will.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    _step(model, name)({"image": images})
    print(_status("VmHWM") - before)


def _status(field: str) -> int:
    """A figure of this process in bytes, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


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
