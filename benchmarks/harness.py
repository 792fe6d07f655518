"""What the harness adds: the median that `lctr benchmark` gives, against a bare loop over the very same session.

    python benchmarks/harness.py -o docs/benchmarks/harness.json
    python benchmarks/harness.py --device cuda -o docs/benchmarks/harness-cuda.json

The bundled localizer at batch 1: exported in FP32, in ONNX Runtime on the CPU; or in torch on a GPU, where GPU compute
times are compared. Both are timed in turns in this process, and the side that goes first changes from round to round.
The harness is called as `lctr benchmark` calls it, for one round at a time; the bare loop reads a clock, or records a
CUDA event, before and after each call and does nothing else. The ratio is of the medians over all calls, with its 95 %
interval; the bound is on the ratio.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import markdown, written

from calib.image_set import noise
from engines.backend import Feeds, Session
from engines.benchmark import Settings, benchmark
from engines.bootstrap import ratio_of_medians
from engines.registry import open_engine
from engines.timing import GPU_COMPUTE, TimingOptions
from toolchain import stages
from toolchain.pipeline import BUNDLED

BOUND = 0.03
"""That the medians may differ by, relative to the bare loop's."""
WARMUP = 50
Loop = Callable[[int], list[float]]
"""Times so many calls, milliseconds each."""


def main() -> None:
    """Measure, write the record, print the ratio; exit with 1 where the bound does not hold."""
    options = _options()
    on_gpu = options.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        path = BUNDLED
        if not on_gpu:
            path = stages.float_onnx(BUNDLED, Path(folder) / "model.onnx", precision="fp32").artifact.path
        with open_engine(path, "torch:cuda" if on_gpu else "onnxruntime") as session:
            feed = {"image": noise(1, 112, 0)}
            bare = _bare_on_gpu(session, feed) if on_gpu else _bare_on_cpu(session, feed)
            harness, loop = _in_turns(_harness(session, feed, on_gpu), bare, options.rounds, options.iterations)
    ratio = ratio_of_medians(harness, loop)
    medians = {"harness": float(np.median(harness)), "bare loop": float(np.median(loop))}
    holds = abs(ratio.value - 1) <= BOUND
    record = {"model": BUNDLED.name, **{key: getattr(options, key) for key in ("device", "rounds", "iterations")}}
    written({**record, "median_ms": medians, "ratio": asdict(ratio), "bound": BOUND, "holds": holds}, options.output)
    print(markdown(("", "median ms"), [[name, f"{median:.4f}"] for name, median in medians.items()]))
    print(f"\nratio {ratio.value:.4f} ({ratio.low:.4f} to {ratio.high:.4f} at 95 %), bound 1 +- {BOUND:g}")
    sys.exit(0 if holds else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


def _in_turns(harness: Loop, bare: Loop, rounds: int, calls: int) -> tuple[list[list[float]], list[list[float]]]:
    """Milliseconds of each call, round after round."""
    for loop in (harness, bare):
        loop(WARMUP)
    found: dict[Loop, list[list[float]]] = {harness: [], bare: []}
    for turn in range(rounds):
        for loop in (harness, bare) if turn % 2 else (bare, harness):
            found[loop].append(loop(calls))
    return found[harness], found[bare]


def _harness(session: Session, feed: Feeds, on_gpu: bool) -> Loop:
    def loop(calls: int) -> list[float]:
        # As the bare loop launches: a captured graph would be something else.
        timing = TimingOptions(cuda_graph=False if on_gpu else None)
        settings = Settings(warmup=0, rounds=1, iterations=calls, timing=timing)
        timings = benchmark({"model": session}, [[feed]], settings).batches[1]["model"].timings
        return list(timings.phases[GPU_COMPUTE] if on_gpu else timings.milliseconds)

    return loop


def _bare_on_cpu(session: Any, feed: Feeds) -> Loop:
    # The very object that the harness times: no second one with threads and memory of its own.
    inference = session._session

    def loop(calls: int) -> list[float]:
        inference.run(None, feed)
        samples = []
        for _ in range(calls):
            start = time.perf_counter_ns()
            inference.run(None, feed)
            samples.append((time.perf_counter_ns() - start) / 1e6)
        return samples

    return loop


def _bare_on_gpu(session: Any, feed: Feeds) -> Loop:
    module, image = session._call, torch.from_numpy(feed["image"]).cuda()

    @torch.inference_mode()
    def loop(calls: int) -> list[float]:
        samples = []
        for _ in range(calls):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            module(image)
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end))
        return samples

    return loop


if __name__ == "__main__":
    main()
