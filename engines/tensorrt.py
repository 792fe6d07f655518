"""TensorRT, 10.x and 11.x: builds and runs engines on the GPU that they are for."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from engines.backend import Availability, BuildOptions, Session, refuse_options
from engines.tensorrt_api import Gpu, Product, gpu_here
from engines.tensorrt_backend import build_engine, ready
from engines.tensorrt_origin import Origin
from toolchain.artifacts import Artifact
from toolchain.progress import Progress, silent

AMPERE = 8
"""Major compute capability from which on `ampere-plus` holds."""
REFUSED = {"targets": "it builds for the GPU that it runs on; widen that with --hardware-compatibility"}


def _load() -> ModuleType:
    import tensorrt

    module: ModuleType = tensorrt
    return module


TENSORRT = Product("TensorRT", "tensorrt", "tensorrt", "install lctr[tensorrt]", _load)


@dataclass(frozen=True)
class TensorRTBackend:
    """NVIDIA TensorRT; see `engines.backend.Backend`."""

    @property
    def name(self) -> str:
        """`tensorrt`."""
        return TENSORRT.backend

    def availability(self) -> Availability:
        """Both need the package and a GPU: the builder times kernels on it."""
        if not TENSORRT.installed:
            reason = f"TensorRT is not installed here: {TENSORRT.install}."
        elif gpu_here() is None:
            reason = (
                "TensorRT builds and runs on a GPU alone, and nvidia-smi sees none on this machine: go to one that has "
                "it, or build with --backend tensorrt-rtx, which needs none."
            )
        else:
            reason = ""
        return Availability(build=not reason, run=not reason, reason=reason)

    def build(self, model: Path, output: Path, options: BuildOptions, progress: Progress = silent) -> Artifact:
        """Compile; the sidecar's `compiled` is the `Inspection` of what the engine inspector listed."""
        refuse_options(options, TENSORRT.name, REFUSED)
        return build_engine(TENSORRT, model, output, options, progress, self.availability(), on_gpu=True)

    def open(self, engine: Path) -> AbstractContextManager[Session]:
        """Run it, after it was found whole and made for this release and this GPU."""
        found = ready(TENSORRT, engine, self.availability(), _fits)
        from engines.tensorrt_session import running

        session: AbstractContextManager[Session] = running(found.trt, TENSORRT.name, found.plan, engine, found.metadata)
        return session


def _fits(origin: Origin, gpu: Gpu) -> bool:
    """Whether an engine runs on this GPU (`HardwareCompatibilityLevel` in TensorRT's API reference)."""
    if origin.gpu is None:
        return False
    if origin.hardware_compatibility == "ampere-plus":
        return int(gpu.capability.partition(".")[0]) >= AMPERE
    if origin.hardware_compatibility == "same-compute-capability":
        return gpu.capability == origin.gpu.capability
    return (gpu.name, gpu.capability) == (origin.gpu.name, origin.gpu.capability)
