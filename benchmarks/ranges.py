"""What observing ranges costs: `int8_onnx` on lctr-small and 512 images against just running those images.

    python benchmarks/ranges.py -o docs/benchmarks/ranges.json

Each side runs in processes of its own, one after the other and in turns, so that its peak memory is its own: peak
resident memory as Linux counts it for the whole process, imports included. Time is from the float ONNX file on disk to
the result: the outputs of the last batch on one side, the quantized file, its ranges and its sidecar on the others,
without equalization and with it. The bounds are on both.
Batch size, images and ONNX Runtime's threads are the same. Images are noise, made on the fly on both sides.

The backbone is the one of `make finetuned` where that is there, and the head a random one, for it has other classes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import written

RUN, OBSERVE, EQUALIZE = "run the images", "observe and quantize", "equalize, observe and quantize"
MAX_BYTES, MAX_RATIO = 1.5e9, 1.5


def main() -> None:
    """Measure and write the record; exits with 1 where a bound does not hold."""
    options = _options()
    if options.side:
        _side(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        weights = _export(model, options)
        record = {
            "preset": options.preset,
            "classes": options.classes,
            "weights": weights,
            "images": options.images,
            "threads": options.threads,
            **_measured(model, options),
        }
    print(written(record, options.output))
    if not all(record["holds"].values()):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="lctr-small")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="Cores that a side may use.")
    parser.add_argument("--method", default="auto")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--backbone", type=Path, help="Default: that of `make finetuned`, where it is there.")
    parser.add_argument("--side", choices=(RUN, OBSERVE, EQUALIZE), help="One side, once; prints its seconds.")
    parser.add_argument("--model", type=Path, help="Of that side.")
    return parser.parse_args()


def _export(path: Path, options: argparse.Namespace) -> str:
    """Write the float model; returns what its weights are, in words."""
    # Late, as what it imports: a side must not hold torch in its memory.
    from subject import model_from_options

    from exporters.files import write_onnx
    from exporters.torch_export import onnx_from_torch
    from toolchain.card import ModelCard
    from toolchain.model.deployment import DeployedLctr
    from toolchain.preprocessing import imagenet

    model, weights = model_from_options(options)
    size, names = model.preset.image_size, tuple(f"class {k}" for k in range(options.classes))
    card = ModelCard(options.preset, names, imagenet(size), tau=0.5)
    write_onnx(onnx_from_torch(DeployedLctr(model), image_size=size, metadata=card.to_metadata()), path)
    return weights


def _measured(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {RUN: [], OBSERVE: [], EQUALIZE: []}
    peaks: dict[str, list[int]] = {side: [] for side in seconds}
    for _ in range(options.rounds):
        for side in seconds:
            taken, peak = _in_process(side, model, options)
            print(f"{side}: {taken:.1f} s, {peak / 2**30:.2f} GiB", file=sys.stderr)
            seconds[side].append(taken)
            peaks[side].append(peak)
    # Neighbours in time are compared: the machine may be slower in another round.
    ratios = {
        side: [taken / run for run, taken in zip(seconds[RUN], seconds[side], strict=True)]
        for side in (OBSERVE, EQUALIZE)
    }
    return {
        "seconds": seconds,
        "peak_bytes": {side: max(found) for side, found in peaks.items()},
        "time_ratio": {
            side: {"value": statistics.median(found), "low": min(found), "high": max(found)}
            for side, found in ratios.items()
        },
        "bounds": {"peak_bytes": MAX_BYTES, "time_ratio": MAX_RATIO},
        "holds": {
            **{f"peak_bytes, {side}": max(peaks[side]) <= MAX_BYTES for side in ratios},
            **{f"time_ratio, {side}": statistics.median(found) <= MAX_RATIO for side, found in ratios.items()},
        },
    }


def _in_process(side: str, model: Path, options: argparse.Namespace) -> tuple[float, int]:
    """Seconds, and the peak resident bytes of the process."""
    command = [sys.executable, __file__, "--side", side, "--model", str(model), "--images", str(options.images)]
    command += ["--method", options.method, "--threads", str(options.threads)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, peak = json.loads(said)
    return seconds, peak


def _side(options: argparse.Namespace) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    seconds = _run(options) if options.side == RUN else _quantize(options)
    # Not getrusage: its peak is inherited from the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    print(json.dumps([seconds, peak]))


def _run(options: argparse.Namespace) -> float:
    """Nothing but the images through the model."""
    import onnxruntime

    from calib.image_set import noise_batches
    from toolchain.calibration import BATCH

    start = time.monotonic()
    settings = onnxruntime.SessionOptions()
    # More threads than cores would slow this side down, and the ratio would flatter ours.
    settings.intra_op_num_threads = options.threads
    session = onnxruntime.InferenceSession(str(options.model), settings, providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]
    for batch in noise_batches(options.images, taken.shape[2], 0, BATCH):
        session.run(None, {taken.name: batch})
    return time.monotonic() - start


def _quantize(options: argparse.Namespace) -> float:
    from toolchain.calibration import noise
    from toolchain.quantization import int8_onnx

    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.model.parent) as folder:
        target, equalize = Path(folder) / "model.int8.onnx", options.side == EQUALIZE
        int8_onnx(options.model, noise(options.images, 0), target, method=options.method, equalize=equalize)
        return time.monotonic() - start


if __name__ == "__main__":
    main()
