"""What INT8 gains: latency and file size in ONNX Runtime, kernels and engine size in TensorRT-RTX, against the bounds.

    python benchmarks/int8.py --threads 2 -o docs/benchmarks/int8.json

lctr-small with 1000 classes, by the stages that `lctr export`, `quantize` and `build` run. The backbone is the one of
`make finetuned` where that is there, and the head a random one, for it has other classes; calibration and timing are
on noise. Speed and size depend on neither. All forms run in one process, interleaved; ratios are of medians, with
their 95 % interval. Outputs are compared first: FP32 must be what the released forward computes, INT8 near it.

Two files hold the INT8 model. The ONNX file that every engine is built from keeps float weights with Q and DQ behind
them, for TensorRT compiles a packed qkv stored as INT8 as an FP16 product; it is as large as FP32's. What ONNX Runtime
deploys is that file optimized offline (`lctr build --backend onnxruntime`), with the weights as int8. The bound on the
size is on the deployed file against FP32's, which is built in the same way; both ratios are recorded.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from record import markdown, written
from released import ReleasedForward
from subject import add_options, eager, model_from_options, require_equal

from calib.image_set import noise
from engines.agreement import snr_db
from engines.backend import BuildOptions, Feeds, Session
from engines.benchmark import Benchmark, Settings, benchmark
from engines.bootstrap import ratio_of_medians
from engines.build import build
from engines.inspect import inspect
from engines.onnxruntime import OnnxRuntimeBackend
from toolchain import calibration, quantization, stages
from toolchain.artifacts import read_sidecar
from toolchain.card import ModelCard
from toolchain.comparison import FEEDS, feeds_from_images
from toolchain.model import checkpoint
from toolchain.model.lctr import Lctr
from toolchain.model.presets import preset_named
from toolchain.preprocessing import imagenet

RELEASED, FP32, INT8, DEPLOYED = "released forward, torch eager", "FP32", "INT8", "INT8, deployed file"
BATCHES = (1, 8)
LEAST_SNR_DB = 6.0
"""Of the logits: where the error is half the signal, something else is computed. Accuracy is for quantizers.py."""
MB = 1e6


@dataclass(frozen=True)
class Bound:
    """A figure to reach.

    Attributes:
        name: of what.
        found: the figure.
        bound: what it must be at least, or at most.
        at_least: which of the two.
    """

    name: str
    found: float
    bound: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether it was reached."""
        return self.found >= self.bound if self.at_least else self.found <= self.bound


def main() -> None:
    """Measure, write the record, print the bounds."""
    options = _options()
    torch.set_num_threads(options.threads)
    model, weights = model_from_options(options)
    record: dict[str, Any] = {
        "preset": options.preset,
        "classes": options.classes,
        "weights": weights,
        "threads": options.threads,
        "calibration": f"{options.calibration_images} noise images",
    }
    with tempfile.TemporaryDirectory() as name:
        files = _files(model, options, Path(name))
        record["file_bytes"] = {form: path.stat().st_size for form, path in files.items()}
        measured = _latency(model, files, options, record)
        record["latency"] = measured.as_dict()
        record["speedup"] = _speedups(measured)
        record["compiled"] = {form: _compiled(files[form]) for form in ("FP16", "INT8 on FP16")}
    bounds = _bounds(record)
    record["bounds"] = [{**asdict(bound), "holds": bound.holds} for bound in bounds]
    written(record, options.output)
    print(_tables(record, bounds))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--calibration-images", type=int, default=16)
    return parser.parse_args()


def _files(model: Lctr, options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Form -> file: ONNX in FP32, FP16 and INT8 on either, and what ONNX Runtime deploys of FP32 and INT8."""
    start = folder / "model.safetensors"
    names = tuple(str(index) for index in range(options.classes))
    checkpoint.save(model, ModelCard(options.preset, names, imagenet(model.preset.image_size), tau=0.1), start)
    images = calibration.noise(options.calibration_images, 0)
    files = {}
    for precision, quantized in (("fp32", INT8), ("fp16", "INT8 on FP16")):
        print(f"exporting and quantizing in {precision} ...", file=sys.stderr)
        files[precision.upper()] = path = folder / f"{precision}.onnx"
        stages.float_onnx(start, path, precision=precision)
        files[quantized] = folder / f"{precision}.int8.onnx"
        quantization.int8_onnx(path, images, files[quantized])
    for form, deployed in ((FP32, "FP32, deployed file"), (INT8, DEPLOYED)):
        files[deployed] = files[form].with_suffix(".deployed.onnx")
        build(files[form], "onnxruntime", files[deployed], BuildOptions())
    return files


def _latency(model: Lctr, files: Mapping[str, Path], options: argparse.Namespace, record: dict[str, Any]) -> Benchmark:
    images = noise(FEEDS * max(BATCHES), model.preset.image_size, 1)
    feeds = feeds_from_images(images, BATCHES)
    runtime = OnnxRuntimeBackend(threads=options.threads)
    with ExitStack() as stack:
        sessions: dict[str, Session] = {RELEASED: eager(ReleasedForward(model))}
        for form in (FP32, INT8, DEPLOYED):
            sessions[form] = stack.enter_context(runtime.open(files[form]))
        for batch in feeds:
            require_equal({form: sessions[form].run(batch[0]) for form in (RELEASED, FP32)})
        record["snr_db"] = {form: _snr(sessions[form], sessions[FP32], feeds[-1][0]) for form in (INT8, DEPLOYED)}
        return benchmark(sessions, feeds, Settings(options.warmup, options.rounds, options.iterations))


def _snr(found: Session, reference: Session, batch: Feeds) -> dict[str, float]:
    """Signal-to-noise of each output, dB; ends the benchmark where INT8 computes something else."""
    ours, theirs = found.run(batch), reference.run(batch)
    snr = {output: snr_db(ours[output], theirs[output]) for output in theirs}
    if not snr["logits"] >= LEAST_SNR_DB:
        sys.exit(f"INT8's logits have {snr['logits']:.1f} dB, under {LEAST_SNR_DB:g}: nothing was timed.")
    return snr


def _speedups(measured: Benchmark) -> dict[str, dict[str, dict[str, Any]]]:
    """Batch size -> `INT8 over FP32` -> how many times as fast, with its 95 % interval."""
    return {
        str(size): {
            f"{form} over {base}": asdict(ratio_of_medians(row[base].rounds, row[form].rounds))
            for form, base in ((FP32, RELEASED), (INT8, RELEASED), (INT8, FP32), (DEPLOYED, RELEASED), (DEPLOYED, FP32))
        }
        for size, row in measured.batches.items()
    }


def _compiled(path: Path) -> dict[str, Any]:
    """What TensorRT-RTX compiles ahead of time; of an INT8 file, in which type each node of the placement is done."""
    engine = path.with_suffix(".engine")
    build(path, "tensorrt-rtx", engine, BuildOptions(), min_coverage=0)
    seen = inspect(engine)
    placed = read_sidecar(path).metadata
    sites, left = set(placed.get("quantized", ())), placed.get("left_float", {})
    return {
        "layers": seen.layers,
        "counts": seen.counts,
        "fused_attention": seen.fused_attention,
        "engine_bytes": engine.stat().st_size,
        "placed": len(sites),
        "placed_int8": sum(p.name in sites and p.type == "int8" for p in seen.products),
        "placed_not_int8": [asdict(p) for p in seen.products if p.name in sites and p.type != "int8"],
        "left_float": {p.name: left[p.name] for p in seen.products if p.name in left},
    }


def _bounds(record: Mapping[str, Any]) -> list[Bound]:
    speedup, size, compiled = record["speedup"]["1"], record["file_bytes"], record["compiled"]["INT8 on FP16"]
    depth = preset_named(record["preset"]).depth
    return [
        Bound("times as fast as our FP32, batch 1", speedup[f"{DEPLOYED} over {FP32}"]["value"], 1.8, at_least=True),
        Bound("times as fast as released, batch 1", speedup[f"{DEPLOYED} over {RELEASED}"]["value"], 4, at_least=True),
        Bound("deployed file / FP32's", size[DEPLOYED] / size["FP32, deployed file"], 0.28),
        Bound("nodes of the placement compiled INT8", compiled["placed_int8"], compiled["placed"], at_least=True),
        Bound("fused attention layers", compiled["fused_attention"], depth, at_least=True),
        Bound("engine, MB", compiled["engine_bytes"] / MB, 56),
    ]


def _tables(record: Mapping[str, Any], bounds: list[Bound]) -> str:
    latency = [
        [size, name, f"{found['value']:.2f}", f"{found['low']:.2f} to {found['high']:.2f}"]
        for size, row in record["speedup"].items()
        for name, found in row.items()
    ]
    size = record["file_bytes"]
    sizes = [[form, f"{count / MB:.1f}", f"{count / size[FP32]:.2f}"] for form, count in size.items()]
    engines = [
        [form, f"{found['engine_bytes'] / MB:.1f}", str(found["layers"]), *_kernels(found)]
        for form, found in record["compiled"].items()
    ]
    reached = [
        [b.name, f"{b.found:.2f}", f"{'>=' if b.at_least else '<='} {b.bound:g}", "yes" if b.holds else "no"]
        for b in bounds
    ]
    return "\n\n".join(
        [
            markdown(("batch", "", "times as fast", "95 % interval"), latency),
            markdown(("file", "MB", "of FP32's"), sizes),
            markdown(("engine", "MB", "layers", "INT8 of placed", "fused attention"), engines),
            markdown(("bound", "found", "asked", "holds"), reached),
        ]
    )


def _kernels(compiled: Mapping[str, Any]) -> list[str]:
    return [f"{compiled['placed_int8']} of {compiled['placed']}", str(compiled["fused_attention"])]


if __name__ == "__main__":
    main()
