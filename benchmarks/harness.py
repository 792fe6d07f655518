"""What the harness adds: the median that `lctr benchmark` gives, against a bare loop over the same InferenceSession.

    python benchmarks/harness.py -o docs/benchmarks/harness.json

The bundled localizer, exported in FP32, batch 1, ONNX Runtime on the CPU. Both are timed in turns in this process, and
the side that goes first changes from round to round. The harness is called as `lctr benchmark` calls it, for one round
at a time; the bare loop reads a clock before and after each call and does nothing else. The ratio is of the medians over
all calls, with its 95 % interval; the bound is on the ratio.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from record import markdown, written

from calib.image_set import noise
from engines.benchmark import Settings, benchmark
from engines.bootstrap import ratio_of_medians
from engines.onnxruntime import OnnxRuntimeBackend
from engines.onnxruntime_session import OnnxRuntimeSession
from toolchain import stages
from toolchain.pipeline import BUNDLED

BOUND = 0.03
"""That the medians may differ by, relative to the bare loop's."""
WARMUP = 50


def main() -> None:
    """Measure, write the record, print the ratio; exit with 1 where the bound does not hold."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        stages.float_onnx(BUNDLED, path, precision="fp32")
        with OnnxRuntimeBackend().open(path) as session:
            harness, bare = _measured(session, options)
    ratio = ratio_of_medians(harness, bare)
    medians = {"harness": float(np.median(harness)), "bare loop": float(np.median(bare))}
    holds = abs(ratio.value - 1) <= BOUND
    record = {"model": BUNDLED.name, "batch": 1, "rounds": options.rounds, "iterations": options.iterations}
    written({**record, "median_ms": medians, "ratio": asdict(ratio), "bound": BOUND, "holds": holds}, options.output)
    print(markdown(("", "median ms"), [[name, f"{median:.4f}"] for name, median in medians.items()]))
    print(f"\nratio {ratio.value:.4f} ({ratio.low:.4f} to {ratio.high:.4f} at 95 %), bound 1 +- {BOUND:g}")
    sys.exit(0 if holds else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


def _measured(session: OnnxRuntimeSession, options: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Milliseconds of each call, round after round: by the harness, and by the bare loop."""
    feed = {"image": noise(1, 112, 0)}
    # The very object that the harness times: no second one with threads and memory of its own.
    inference = session._session
    assert inference is not None
    settings = Settings(warmup=0, rounds=1, iterations=options.iterations)
    _bare(inference, feed, WARMUP)
    harness: list[Any] = []
    bare: list[Any] = []
    for turn in range(options.rounds):
        for side in (0, 1) if turn % 2 else (1, 0):
            if side:
                harness.append(benchmark({"model": session}, [[feed]], settings).batches[1]["model"].rounds[0])
            else:
                bare.append(_bare(inference, feed, options.iterations))
    return harness, bare


def _bare(inference: ort.InferenceSession, feed: dict[str, NDArray[Any]], calls: int) -> list[float]:
    inference.run(None, feed)
    samples = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        inference.run(None, feed)
        samples.append((time.perf_counter_ns() - start) / 1e6)
    return samples


if __name__ == "__main__":
    main()
