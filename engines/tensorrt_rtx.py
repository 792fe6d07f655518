"""TensorRT-RTX: builds engines ahead of time, without a GPU, and runs them on the GPUs of its architectures."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from engines.backend import Availability, BuildOptions, Session, refuse_options
from engines.tensorrt_api import Gpu, Product, gpu_here, recorder, shortened
from engines.tensorrt_backend import Ready, build_engine, ready
from engines.tensorrt_origin import Origin
from toolchain.artifacts import Artifact
from toolchain.errors import BackendError
from toolchain.progress import Progress, silent

if TYPE_CHECKING:
    import tensorrt

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""What TensorRT-RTX 1.x runs on; Hopper (9.0) is not among them."""
REFUSED = {
    "optimization_level": "its engines are the same at every level (measured on 1.7.1); leave it out",
    "timing_cache": "it would accept one and not use it; leave it out",
    "version_compatible": "its engines run in the release that built them alone; build again for another one",
    "hardware_compatibility": "name the GPUs to build for with --target",
    "calibration_cache": "it has no implicit INT8; insert Q/DQ with `lctr quantize`, and build that file",
}


def _load() -> ModuleType:
    import tensorrt_rtx

    module: ModuleType = tensorrt_rtx
    return module


RTX = Product("TensorRT-RTX", "tensorrt-rtx", "tensorrt_rtx", "install lctr[rtx]", _load)


@dataclass(frozen=True)
class TensorRTRTXBackend:
    """NVIDIA TensorRT-RTX; see `engines.backend.Backend`.

    Attributes:
        runtime_cache: file of the kernels that the first run compiles for its GPU; None: compiled again by each
            process.
    """

    runtime_cache: Path | None = None

    @property
    def name(self) -> str:
        """`tensorrt-rtx`."""
        return RTX.backend

    def availability(self) -> Availability:
        """Building needs the package alone; running needs a GPU that it supports."""
        reason = _why_not_run()
        return Availability(build=RTX.installed, run=not reason, reason=reason)

    def build(self, model: Path, output: Path, options: BuildOptions, progress: Progress = silent) -> Artifact:
        """Compile; the sidecar's `compiled` is the `Inspection` of what the builder listed."""
        refuse_options(options, RTX.name, REFUSED)
        return build_engine(RTX, model, output, options, progress, self.availability())

    def open(self, engine: Path) -> AbstractContextManager[Session]:
        """Run it, after it was found whole, made for this release and this GPU, and valid to the runtime itself."""
        found = ready(RTX, engine, self.availability(), _fits)
        _require_valid(found)
        from engines.tensorrt_session import running

        session: AbstractContextManager[Session] = running(
            found.trt, RTX.name, found.plan, engine, found.metadata, runtime_cache=self.runtime_cache
        )
        return session


def _why_not_run() -> str:
    """One sentence; empty where it runs."""
    gpu = gpu_here()
    if not RTX.installed:
        return f"TensorRT-RTX is not installed here: {RTX.install}."
    if gpu is None:
        return "this machine has no NVIDIA GPU that nvidia-smi can see: run it on one that TensorRT-RTX supports."
    if gpu.capability not in CAPABILITIES:
        return f"TensorRT-RTX does not support {gpu}: build for it with TensorRT instead, --backend tensorrt."
    return ""


def _fits(origin: Origin, gpu: Gpu) -> bool:
    """Whether an engine is for this GPU; without targets it is for all that the builder calls portable."""
    return not origin.targets or origin.is_target(gpu)


def _require_valid(found: Ready) -> None:
    """Ask the runtime, which reads the engine's header alone.

    Raises:
        BackendError: it says that the engine does not run here.
    """
    log = recorder(found.trt)
    runtime: tensorrt.Runtime = found.trt.Runtime(log)
    if not (hasattr(runtime, "get_engine_validity") and hasattr(runtime, "engine_header_size")):
        return
    validity, flags = runtime.get_engine_validity(found.plan[: runtime.engine_header_size])
    if hasattr(found.trt, "EngineValidity") and validity != found.trt.EngineValidity.INVALID:
        return
    # Flags tell what is wrong with the engine, the log what is wrong with this machine.
    reasons = [shortened(text) for text in log.errors[:1]] or ["no reason given"]
    if hasattr(found.trt, "EngineInvalidityDiagnostics"):
        members = found.trt.EngineInvalidityDiagnostics.__members__.items()
        reasons = [name.replace("_", " ").lower() for name, flag in members if flags & int(flag)] or reasons
    raise BackendError(
        f"TensorRT-RTX says that {found.origin.engine} does not run here ({', '.join(reasons)}): update the driver, or "
        f"{found.origin.remedy(found.gpu)}."
    )
