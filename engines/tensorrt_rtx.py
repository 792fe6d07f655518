"""TensorRT-RTX: builds engines ahead of time, without a GPU, and records what the builder compiled.

Running needs a GPU of the builder's architectures and a GPU runtime, which this version does not ship: `open` says so.
"""

import multiprocessing
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from engines.backend import Availability, BatchProfile, BuildOptions, Session
from engines.compiled_products import inspection_from_dump
from engines.layer_dump import layer_dump_from_log
from engines.onnx_graph import graph_from_onnx
from engines.products import computed_nodes, products_of
from engines.sealing import opened, sealed
from toolchain.artifacts import Artifact, gpu_description, writing
from toolchain.errors import BackendError, BackendUnavailable, LctrError, UsageError
from toolchain.progress import Progress, silent

MODULE = "tensorrt_rtx"
INSTALL = "install lctr[rtx]"
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""What TensorRT-RTX 1.x runs on; Hopper (9.0) is not among them."""
REMEDIES = (
    ("workspace limit", "raise --workspace or leave it out"),
    ("zero point is not supported", "quantize symmetrically, with zero point 0"),
    ("must have same input types", "give both operands one type; a scale has the type of what it quantizes"),
    ("has type Int32 but must", "leave biases in floating point"),
    ("FP32 GEMM is not supported", "leave sm75 out, whose INT8 layers need FP16 neighbours"),
)
REMEDY = "check the model with ONNX Runtime, or export it again"
PLACE = re.compile(r",? *In \w+ at /_src/[^\s)]*")
"""Where in its own source the builder stopped: of no use to a user."""


@dataclass(frozen=True)
class TensorRTRTXBackend:
    """NVIDIA TensorRT-RTX; see `engines.backend.Backend`."""

    @property
    def name(self) -> str:
        """`tensorrt-rtx`."""
        return "tensorrt-rtx"

    def availability(self) -> Availability:
        """Building needs the package alone; running is what `open` refuses, for the same reason."""
        installed = find_spec(MODULE) is not None
        return Availability(build=installed, run=False, reason=_why_not_run(installed=installed))

    def build(self, model: Path, output: Path, options: BuildOptions, progress: Progress = silent) -> Artifact:
        """Compile; the sidecar's `compiled` is the `Inspection` of what the builder listed."""
        graph = graph_from_onnx(model)
        availability = self.availability()
        if not availability.build:
            raise BackendUnavailable(availability.reason)
        engine, log = _compiled(model, options, progress)
        with writing(output) as temporary:
            temporary.write_bytes(engine)
        listing = layer_dump_from_log(log)
        inspection = inspection_from_dump(self.name, products_of(graph), listing, computed_nodes(graph))
        return sealed(model, output, self.name, options, {"compiled": inspection.as_dict()})

    def open(self, engine: Path) -> AbstractContextManager[Session]:
        """Refuse, after the engine itself was found whole: BackendUnavailable says what is missing here."""
        opened(engine, self.name)
        raise BackendUnavailable(f"{engine} is compiled ahead of time, not run: {self.availability().reason}")


def _compiled(model: Path, options: BuildOptions, progress: Progress) -> tuple[bytes, str]:
    """The engine and the builder's log, from a process of its own.

    The library keeps state between builds: with 1.7.1, a portable build after one that was refused for SM75 has its
    convolutions in FP32. It also listens to one logger per process only, and a crash in it would be ours.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    builder = context.Process(target=_compile, args=(theirs, model, replace(options, metadata={})), daemon=True)
    builder.start()
    theirs.close()
    try:
        while True:
            match ours.recv():
                case ("step", done, total, note):
                    progress(done, total, note)
                case ("engine", plan, log):
                    return plan, log
                case ("error", error):
                    raise error
    except EOFError as error:
        builder.join()
        raise BackendError(
            f"TensorRT-RTX's builder ended with status {builder.exitcode} on {model}: free memory, or export it again."
        ) from error
    finally:
        # Finished already, or its answer is no longer wanted: an error, or the user's interrupt.
        builder.kill()
        builder.join()


def _compile(answer: Connection, model: Path, options: BuildOptions) -> None:
    def progress(done: int, total: int, note: str = "") -> None:
        answer.send(("step", done, total, note))

    try:
        answer.send(("engine", *_Build(_vendor(), model, options, progress).run()))
    except LctrError as error:
        answer.send(("error", error))


class _Build:
    """One build. The vendor's objects refer to one another without owning: all live as long as this one."""

    def __init__(self, trt: ModuleType, model: Path, options: BuildOptions, progress: Progress) -> None:
        self.trt = trt
        self.model = model
        self.log = _logger(trt)
        self.monitor = _monitor(trt, progress)
        self.builder = trt.Builder(self.log)
        self.config = self._config(options)
        # The only typing there is in TensorRT-RTX is strong: types come from the ONNX file.
        self.network = self.builder.create_network(0)
        self._parse()
        self._set_batch(options.batch)

    def run(self) -> tuple[bytes, str]:
        """The engine and the builder's verbose log."""
        plan = self.builder.build_serialized_network(self.network, self.config)
        if plan is None:
            raise self._refused()
        self.monitor.finish()
        return bytes(plan), "\n".join(text for _, text in self.log.lines)

    def _config(self, options: BuildOptions) -> Any:
        known = {n.lower(): c for n, c in self.trt.ComputeCapability.__members__.items() if n.startswith("SM")}
        targets = sorted({t.lower() for t in options.targets}, key=lambda t: int(known[t]) if t in known else -1)
        for target in targets:
            if target not in known:
                raise UsageError(f"TensorRT-RTX has no target '{target}': choose among {', '.join(known)}.")
        config = self.builder.create_builder_config()
        config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED
        config.progress_monitor = self.monitor
        if targets:
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                config.set_compute_capability(known[target], index)
        if options.workspace is not None:
            config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, options.workspace)
        return config

    def _parse(self) -> None:
        self.parser = self.trt.OnnxParser(self.network, self.log)
        if self.parser.parse_from_file(str(self.model)):
            return
        if not self.parser.num_errors:
            raise self._refused()
        error = self.parser.get_error(0)
        node = f" at node '{error.node_name()}'" if error.node_name() else ""
        cause = error.desc()
        raise BackendError(f"TensorRT-RTX cannot read {self.model}{node} ({_shortened(cause)}): {_remedy(cause)}.")

    def _set_batch(self, batch: BatchProfile) -> None:
        profile = self.builder.create_optimization_profile()
        inputs = [self.network.get_input(i) for i in range(self.network.num_inputs)]
        dynamic = [(tensor.name, tuple(tensor.shape)) for tensor in inputs if -1 in tuple(tensor.shape)]
        for name, shape in dynamic:
            if -1 in shape[1:]:
                raise BackendError(
                    f"Input '{name}' of {self.model} is {list(shape)}: export it with the batch alone dynamic."
                )
            profile.set_shape(name, *((n, *shape[1:]) for n in (batch.minimum, batch.optimum, batch.maximum)))
        if dynamic and self.config.add_optimization_profile(profile) < 0:
            raise self._refused()

    def _refused(self) -> BackendError:
        worst = (self.trt.ILogger.INTERNAL_ERROR, self.trt.ILogger.ERROR)
        first = next((text for severity, text in self.log.lines if severity in worst), "it logged no error")
        return BackendError(f"TensorRT-RTX refuses {self.model} ({_shortened(first)}): {_remedy(first)}.")


def _shortened(error: str) -> str:
    """The first line that says something, without the places in the builder's own source."""
    lines = [line for line in error.strip().splitlines() if not line.startswith("Invalid Node - ")]
    return PLACE.sub("", (lines or error.strip().splitlines() or ["no reason given"])[0]).rstrip(" .")


def _remedy(error: str) -> str:
    return next((what for sign, what in REMEDIES if sign in error), REMEDY)


def _why_not_run(*, installed: bool) -> str:
    if not installed:
        return f"TensorRT-RTX is not installed here: {INSTALL}."
    gpu = gpu_description()
    if gpu is None:
        return "this machine has no NVIDIA GPU that nvidia-smi can see: run it on one that TensorRT-RTX supports."
    name, _, rest = gpu.partition(",")
    capability = rest.partition(",")[0].strip()
    if capability not in CAPABILITIES:
        sm = capability.replace(".", "")
        return f"TensorRT-RTX does not support {name} (SM{sm}): build for it with TensorRT instead."
    return f"this version of lctr has no GPU runtime for {name}: run it with TensorRT-RTX's own tools."


def _vendor() -> ModuleType:
    try:
        import tensorrt_rtx
    except (ImportError, OSError) as error:
        raise BackendUnavailable(f"TensorRT-RTX cannot be loaded ({_shortened(str(error))}): {INSTALL}.") from error
    module: ModuleType = tensorrt_rtx
    return module


def _logger(trt: ModuleType) -> Any:
    """Keeps every line."""

    class Recorder(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[Any, str]] = []

        def log(self, severity: Any, text: str) -> None:
            self.lines.append((severity, text))

    return Recorder()


def _monitor(trt: ModuleType, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Tells `progress` the steps of the outermost phase; inner phases have no share of the whole that is known."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outer: tuple[str, int] | None = None

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.outer = (name, steps)

        def phase_finish(self, name: str) -> None:
            """Steps are told as they complete."""

        def step_complete(self, name: str, step: int) -> bool:
            if self.outer and name == self.outer[0]:
                progress(step + 1, self.outer[1], name)
            return True

        def finish(self) -> None:
            # The builder leaves its last step out.
            if self.outer:
                progress(self.outer[1], self.outer[1], self.outer[0])

    return Monitor()
