"""A build in TensorRT or TensorRT-RTX: one code path for both products and all their releases."""

import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from engines.backend import HARDWARE_LEVELS, BuildOptions
from engines.tensorrt_api import Product, loaded, monitor, recorder, refused
from engines.tensorrt_calibration import calibrator, dropped, has_implicit_int8
from engines.tensorrt_profiles import profiles_of
from toolchain.errors import BackendError, LctrError, UsageError, chosen
from toolchain.progress import Progress

if TYPE_CHECKING:
    import tensorrt


@dataclass(frozen=True)
class Order:
    """What is to be built.

    Attributes:
        product: the builder.
        model: ONNX file.
        options: that the product can honour.
        calibration: content of the calibration cache: implicit INT8; None: types come from the ONNX file alone.
        half: with implicit INT8, other layers may run in FP16.
        timings: content of the timing cache; None: none is asked for.
        inspected: load the engine once and list its layers; needs a GPU.
    """

    product: Product
    model: Path
    options: BuildOptions
    calibration: bytes | None = None
    half: bool = False
    timings: bytes | None = None
    inspected: bool = False


@dataclass(frozen=True)
class Compiled:
    """What a build gave.

    Attributes:
        plan: the engine.
        version: of the builder.
        log: the builder's verbose log.
        listing: the engine inspector's JSON, where it was asked for.
        timings: the timing cache to write back, where one was asked for.
    """

    plan: bytes
    version: str
    log: str
    listing: str | None = None
    timings: bytes | None = None


def compiled(order: Order, progress: Progress) -> Compiled:
    """Build in a process of its own.

    The library keeps state between builds: with TensorRT-RTX 1.7.1, a portable build after one that was refused for
    SM75 has its convolutions in FP32. It also listens to one logger per process only, and a crash in it would be ours.

    Raises:
        BackendUnavailable: the module does not load.
        UsageError: an option that this release cannot honour, or that does not fit the model.
        BackendError: the builder refused, or died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_compile, args=(theirs, order), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            match ours.recv():
                case ("step", done, total, note):
                    progress(done, total, note)
                case ("engine", made):
                    found: Compiled = made
                    return found
                case ("error", error):
                    raise error
    except EOFError as error:
        process.join()
        raise BackendError(
            f"{order.product.name}'s builder ended with status {process.exitcode} on {order.model}: free memory, or "
            "export it again."
        ) from error
    finally:
        # Finished already, or its answer is no longer wanted: an error, or the user's interrupt.
        process.kill()
        process.join()


def _compile(answer: Connection, order: Order) -> None:
    def progress(done: int, total: int, note: str = "") -> None:
        answer.send(("step", done, total, note))

    try:
        answer.send(("engine", _Build(loaded(order.product), order, progress).run()))
    except LctrError as error:
        answer.send(("error", error))


class _Build:
    """One build. The vendor's objects refer to one another without owning: all live as long as this one."""

    def __init__(self, trt: ModuleType, order: Order, progress: Progress) -> None:
        self.trt = trt
        self.order = order
        self.log = recorder(trt)
        self.monitor = monitor(trt, progress)
        self.calibrator = self._calibrator()
        self.builder = self._builder()
        self.config = self._config(order.options)
        self.network: tensorrt.INetworkDefinition = self.builder.create_network(self._typing())
        self._parse()
        self._set_profile()

    def run(self) -> Compiled:
        """The engine, and what the builder said of it."""
        plan = self.builder.build_serialized_network(self.network, self.config)
        version: str = self.trt.__version__
        if self.calibrator and self.calibrator.dropped:
            raise dropped(self.order.calibration or b"", self.order.product.name, version)
        if plan is None:
            raise self._refused()
        self.monitor.finish()
        content = bytes(plan)
        return Compiled(
            plan=content,
            version=version,
            log="\n".join(text for _, text in self.log.lines),
            listing=self._listing(content) if self.order.inspected else None,
            timings=bytes(self.config.get_timing_cache().serialize()) if self.order.timings is not None else None,
        )

    def _builder(self) -> "tensorrt.Builder":
        try:
            builder: tensorrt.Builder = self.trt.Builder(self.log)
        except TypeError as error:
            # pybind11's word for a factory that gave nothing: no CUDA, or libraries that do not fit together.
            raise self._refused() from error
        return builder

    def _calibrator(self) -> Any:
        """For implicit INT8; None without."""
        if self.order.calibration is None:
            return None
        if not has_implicit_int8(self.trt):
            raise UsageError(
                f"{self.order.product.name} {self.trt.__version__} has no implicit INT8: insert Q/DQ with "
                "`lctr quantize`, and build that file without --calibration-cache."
            )
        return calibrator(self.trt, self.order.calibration)

    def _typing(self) -> int:
        """Types come from the ONNX file wherever the release leaves a choice, implicit INT8 excepted."""
        flags = self.trt.NetworkDefinitionCreationFlag
        if self.calibrator is not None or not hasattr(flags, "STRONGLY_TYPED"):
            return 0
        return 1 << int(flags.STRONGLY_TYPED)

    def _config(self, options: BuildOptions) -> "tensorrt.IBuilderConfig":
        trt = self.trt
        config: tensorrt.IBuilderConfig = self.builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.progress_monitor = self.monitor
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatibility != "none":
            levels = trt.HardwareCompatibilityLevel.__members__
            known = {word: levels[name] for word, name in HARDWARE_LEVELS.items() if name in levels}
            config.hardware_compatibility_level = chosen(
                "hardware compatibility", options.hardware_compatibility, known
            )
        self._set_targets(config, options.targets)
        self._set_timing_cache(config)
        if self.calibrator is not None:
            config.set_flag(trt.BuilderFlag.INT8)
            if self.order.half:
                config.set_flag(trt.BuilderFlag.FP16)
            config.int8_calibrator = self.calibrator
        return config

    def _set_targets(self, config: "tensorrt.IBuilderConfig", targets: tuple[str, ...]) -> None:
        if not targets:
            return
        name = self.order.product.name
        if not (
            hasattr(self.trt, "ComputeCapability")
            and hasattr(config, "num_compute_capabilities")
            and hasattr(config, "set_compute_capability")
        ):
            raise UsageError(f"{name} {self.trt.__version__} builds for no GPU by name: leave --target out.")
        known = {n.lower(): c for n, c in self.trt.ComputeCapability.__members__.items() if n.startswith("SM")}
        wanted = sorted({t.lower() for t in targets}, key=lambda t: int(known[t]) if t in known else -1)
        for target in wanted:
            if target not in known:
                raise UsageError(f"{name} has no target '{target}': choose among {', '.join(known)}.")
        config.num_compute_capabilities = len(wanted)
        for index, target in enumerate(wanted):
            config.set_compute_capability(known[target], index)

    def _set_timing_cache(self, config: "tensorrt.IBuilderConfig") -> None:
        if self.order.timings is None:
            return
        cache = config.create_timing_cache(self.order.timings)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            raise BackendError(
                f"{self.order.options.timing_cache} is no timing cache of this {self.order.product.name} and GPU: name "
                "another file, or remove it."
            )

    def _parse(self) -> None:
        self.parser: tensorrt.OnnxParser = self.trt.OnnxParser(self.network, self.log)
        if self.parser.parse_from_file(str(self.order.model)):
            return
        if not self.parser.num_errors:
            raise self._refused()
        error = self.parser.get_error(0)
        node = f" at node '{error.node_name()}'" if error.node_name() else ""
        raise refused(f"{self.order.product.name} cannot read {self.order.model}{node}", error.desc())

    def _set_profile(self) -> None:
        inputs = [self.network.get_input(i) for i in range(self.network.num_inputs)]
        shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
        profiles = profiles_of(shapes, self.order.model, self.order.options)
        if not profiles:
            return
        profile = self.builder.create_optimization_profile()
        for name, sizes in profiles.items():
            profile.set_shape(name, sizes.minimum, sizes.optimum, sizes.maximum)
        if self.config.add_optimization_profile(profile) < 0:
            raise self._refused()
        if self.calibrator is not None:
            self.config.set_calibration_profile(profile)

    def _listing(self, plan: bytes) -> str | None:
        runtime: tensorrt.Runtime = self.trt.Runtime(self.log)
        # A version-compatible plan brings host code along. This one was made a moment ago, here.
        runtime.engine_host_code_allowed = self.order.options.version_compatible
        engine: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._refused()
        inspector: tensorrt.EngineInspector = engine.create_engine_inspector()
        listing: str = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        return listing

    def _refused(self) -> BackendError:
        errors: list[str] = self.log.errors
        return refused(f"{self.order.product.name} refuses {self.order.model}", (errors or ["it logged no error"])[0])
