"""What our deployment graph gains over the published forward on a GPU, before any engine: torch against torch.

    python benchmarks/gpu.py -o docs/benchmarks/gpu.json

lctr-small with 1000 classes at batch 1, 8 and 32, all forms in FP16: the forward as published and our plain model, both
eager; our deployment graph eager, compiled by Inductor, and replayed as one captured CUDA graph. The forward as
published is there in FP32, too, as it was released. All run in one process on the same weights and images, interleaved;
how many times as fast is a ratio of medians, with its 95 % interval. Calls are timed by CUDA events, transfers
included. Outputs are compared first: FP32 exactly, FP16 within what FP16 holds.

`--device cpu --preset lctr-nano --quick` runs the same code where there is no GPU; there nothing is captured, and the
bounds are not judged.
"""

import argparse
import copy
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record import markdown, written
from released import ReleasedForward
from subject import add_options, model_from_options
from torch import Tensor, nn

from calib.image_set import noise
from engines.backend import PLAIN, Feeds, Input, Session
from engines.benchmark import Benchmark, Settings, benchmark
from engines.bootstrap import ratio_of_medians
from engines.timing import TimingOptions, Timings
from engines.torch_runtime import COMPILE, CUDA, EAGER, FP16, FP32, TorchBackend
from toolchain.artifacts import gpu_description
from toolchain.comparison import FEEDS, feeds_from_images
from toolchain.errors import LctrError
from toolchain.model.deployment import DeployedLctr
from toolchain.model.lctr import Lctr

RELEASED, RELEASED_FP32 = "released forward, eager FP16", "released forward, eager FP32"
PLAIN_MODEL, DEPLOYED = "our plain model, eager FP16", "deployment graph, eager FP16"
COMPILED, CAPTURED = "deployment graph, torch.compile FP16", "deployment graph, captured FP16"
BATCHES = (1, 8, 32)
BOUNDS = {1: 3.0, 32: 1.5}
"""Batch size -> how many times as fast as the released forward the captured deployment graph must be."""
TOLERANCE = 5e-2
"""Of an output's largest value: what FP16 may be off from the released forward in FP32."""


@dataclass(frozen=True)
class Form:
    """One way to run the localizer.

    Attributes:
        module: images float32 -> logits and map float32.
        runtime: what runs it.
        captured: as one CUDA graph.
    """

    module: nn.Module
    runtime: TorchBackend
    captured: bool = False


@dataclass(frozen=True)
class Captured:
    """A session whose calls are captured or not, whatever else a timing asks for."""

    session: Session
    cuda_graph: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        """The session's."""
        return self.session.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """The session's."""
        return self.session.outputs

    @property
    def taken(self) -> tuple[Input, ...]:
        """The session's."""
        return self.session.taken

    @property
    def metadata(self) -> Mapping[str, str]:
        """The session's."""
        return self.session.metadata

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """As the session."""
        return self.session.run(feeds)

    def time(self, feeds: Feeds, iterations: int, options: TimingOptions = PLAIN) -> Timings:
        """As the session, captured or not."""
        return self.session.time(feeds, iterations, replace(options, cuda_graph=self.cuda_graph))


class Half(nn.Module):
    """A module in FP16 between its input and its outputs, as its user would make it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and map."""
        logits, map_ = self.module(images.half())[:2]
        return logits.float(), map_.float()


class First(nn.Module):
    """A module's logits and map, without what else it returns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and map."""
        logits, map_ = self.module(images)[:2]
        return logits, map_


def main() -> None:
    """Measure, write the record, print tables."""
    options = _options()
    gpu = gpu_description() if options.device == CUDA else None
    if options.device == CUDA and (gpu is None or not torch.cuda.is_available()):
        sys.exit("benchmarks/gpu.py needs an NVIDIA GPU and a CUDA build of torch: run it there, or with --device cpu.")
    torch.set_num_threads(options.threads)
    model, weights = model_from_options(options)
    settings = Settings(1, 2, 1) if options.quick else Settings(options.warmup, options.rounds, options.iterations)
    batches = BATCHES[:2] if options.quick else BATCHES
    try:
        measured = _measured(_forms(model, options), model.preset.image_size, batches, settings)
    except LctrError as error:
        sys.exit(str(error))
    record: dict[str, Any] = {
        "preset": options.preset,
        "classes": options.classes,
        "weights": weights,
        "device": gpu or f"CPU, {options.threads} threads",
        "latency": measured.as_dict(),
        "times_as_fast": _speedups(measured),
    }
    if options.device == CUDA:
        record["bounds"] = _bounds(record["times_as_fast"])
    written(record, options.output)
    print(_tables(record))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.set_defaults(warmup=10, iterations=20)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="Two rounds of one call, batch 1 and 8, no torch.compile.")
    return parser.parse_args()


def _forms(model: Lctr, options: argparse.Namespace) -> dict[str, Form]:
    """Name -> form; the one that the others are held against comes first."""
    half = copy.deepcopy(model).half()
    eager = TorchBackend(EAGER, options.device, FP16)
    deployed = DeployedLctr(model, precision=torch.float16)
    forms = {
        RELEASED: Form(Half(ReleasedForward(half)), eager),
        RELEASED_FP32: Form(First(ReleasedForward(model)), TorchBackend(EAGER, options.device, FP32)),
        PLAIN_MODEL: Form(Half(half), eager),
        DEPLOYED: Form(deployed, eager),
    }
    if not options.quick:
        forms[COMPILED] = Form(deployed, TorchBackend(COMPILE, options.device, FP16))
    if options.device == CUDA:
        forms[CAPTURED] = Form(deployed, eager, captured=True)
    return forms


def _measured(forms: Mapping[str, Form], size: int, batches: tuple[int, ...], settings: Settings) -> Benchmark:
    taken = Input("image", np.dtype(np.float32), ("batch", 3, size, size))
    feeds = feeds_from_images(noise(FEEDS * max(batches), size, 0), batches)
    sessions: dict[str, Session] = {}
    with ExitStack() as stack:
        for name, form in forms.items():
            opened = form.runtime.session_from_module(form.module, [taken], ("logits", "map"), {}, name)
            session = stack.enter_context(opened)
            # On a CPU there is nothing to capture, and the option is refused where it is asked for.
            sessions[name] = Captured(session, form.captured)
        for batch in feeds:
            _require_near({name: session.run(batch[0]) for name, session in sessions.items()})
        return benchmark(sessions, feeds, settings)


def _require_near(outputs: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
    """End the benchmark where a form computes something else than the release in FP32.

    Maps are compared where the predicted classes agree: of another class it is another map.
    """
    right = outputs[RELEASED_FP32]
    for name, found in outputs.items():
        agree = found["logits"].argmax(1) == right["logits"].argmax(1)
        pairs = {"logits": (found["logits"], right["logits"]), "map": (found["map"][agree], right["map"][agree])}
        for output, (ours, theirs) in pairs.items():
            error = float(np.abs(ours - theirs).max(initial=0) / np.abs(right[output]).max())
            if not error <= TOLERANCE:
                sys.exit(f"'{output}' of {name} deviates by {error:.1e} of its largest value: nothing was timed.")


def _speedups(measured: Benchmark) -> dict[str, dict[str, dict[str, Any]]]:
    """Batch size -> form -> how many times as fast as the released forward in FP16, with the 95 % interval."""
    return {
        str(size): {
            name: asdict(ratio_of_medians(row[measured.baseline].rounds, found.rounds)) for name, found in row.items()
        }
        for size, row in measured.batches.items()
    }


def _bounds(speedups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    found = {size: speedups[str(size)][CAPTURED]["value"] for size in BOUNDS if str(size) in speedups}
    return [
        {"batch": size, "times_as_fast": value, "bound": BOUNDS[size], "holds": value >= BOUNDS[size]}
        for size, value in found.items()
    ]


def _tables(record: Mapping[str, Any]) -> str:
    rows = [
        [size, name, f"{record['latency']['batches'][size][name]['timings']['median']:.2f}", *_spread(found)]
        for size, row in record["times_as_fast"].items()
        for name, found in row.items()
    ]
    tables = [record["device"], markdown(("batch", "", "median, ms", "times as fast", "at 95 %"), rows)]
    if bounds := record.get("bounds"):
        reached = [
            [str(b["batch"]), f"{b['times_as_fast']:.2f}", f">= {b['bound']:g}", "yes" if b["holds"] else "no"]
            for b in bounds
        ]
        tables.append(markdown(("batch", "times as fast", "asked", "holds"), reached))
    return "\n\n".join(tables)


def _spread(found: Mapping[str, float]) -> list[str]:
    return [f"{found['value']:.2f}", f"{found['low']:.2f} to {found['high']:.2f}"]


if __name__ == "__main__":
    main()
