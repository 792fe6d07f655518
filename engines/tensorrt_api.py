"""What TensorRT (10.x, 11.x) and TensorRT-RTX share: one API under two module names.

Where they differ, the code asks the module (`hasattr`), never its version.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from toolchain.artifacts import gpu_description
from toolchain.errors import BackendError, BackendUnavailable
from toolchain.progress import Progress

REMEDIES = (
    ("workspace limit", "raise --workspace or leave it out"),
    ("zero point is not supported", "quantize symmetrically, with zero point 0"),
    ("must have same input types", "give both operands one type; a scale has the type of what it quantizes"),
    ("has type Int32 but must", "leave biases in floating point"),
    ("FP32 GEMM is not supported", "leave sm75 out, whose INT8 layers need FP16 neighbours"),
    (
        "find any implementation for node",
        "raise --workspace, or leave the node float with `lctr quantize --keep-float`",
    ),
)
REMEDY = "check the model with ONNX Runtime, or export it again"
PLACE = re.compile(r",? *In \w+ at /_src/[^\s)]*")
"""Where in its own source the builder stopped: of no use to a user."""


@dataclass(frozen=True)
class Product:
    """One of the two.

    Attributes:
        name: as NVIDIA writes it.
        backend: our name for it.
        module: its Python module.
        install: what to do where that is missing.
        load: imports the module; only the file of its backend may.
    """

    name: str
    backend: str
    module: str
    install: str
    load: Callable[[], ModuleType]

    @property
    def installed(self) -> bool:
        """Whether the module is there. A folder of type stubs alone has a spec, too, but nothing to load."""
        spec = find_spec(self.module)
        return spec is not None and spec.origin is not None


@dataclass(frozen=True)
class Gpu:
    """A GPU as `nvidia-smi` names it; `capability` is such as `8.9`."""

    name: str
    capability: str
    driver: str

    @property
    def sm(self) -> str:
        """`sm89`."""
        return f"sm{self.capability.replace('.', '')}"

    def __str__(self) -> str:
        """`NVIDIA L4 (SM89)`."""
        return f"{self.name} ({self.sm.upper()})"


def gpu_here() -> Gpu | None:
    """The first GPU of this machine; None without a driver."""
    description = gpu_description()
    if description is None:
        return None
    # From the right: the name is the vendor's and may hold a comma.
    name, *rest = (part.strip() for part in description.rsplit(",", 2))
    capability, driver = rest if len(rest) == 2 else ("", "")
    return Gpu(name, capability, driver)


def loaded(product: Product) -> ModuleType:
    """The vendor's module.

    Raises:
        BackendUnavailable: it is not installed, or does not load.
    """
    try:
        return product.load()
    except (ImportError, OSError) as error:
        cause = shortened(str(error))
        raise BackendUnavailable(f"{product.name} cannot be loaded ({cause}): {product.install}.") from error


def shortened(error: str) -> str:
    """The first line that says something, without the places in the builder's own source."""
    lines = [line for line in error.strip().splitlines() if not line.startswith("Invalid Node - ")]
    return PLACE.sub("", (lines or error.strip().splitlines() or ["no reason given"])[0]).rstrip(" .")


def refused(subject: str, cause: str) -> BackendError:
    """The error of a builder or runtime that said `cause`; `subject` says who refuses what."""
    remedy = next((what for sign, what in REMEDIES if sign in cause), REMEDY)
    return BackendError(f"{subject} ({shortened(cause)}): {remedy}.")


def recorder(trt: ModuleType) -> Any:
    """A logger that keeps every line, as `lines`, and prints none.

    Its `errors` are the texts of the errors among them.
    """

    class Recorder(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[Any, str]] = []

        def log(self, severity: Any, text: str) -> None:
            self.lines.append((severity, text))

        @property
        def errors(self) -> list[str]:
            worst = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
            return [text for severity, text in self.lines if severity in worst]

    return Recorder()


def monitor(trt: ModuleType, progress: Progress) -> Any:
    """Tells `progress` the steps of the outermost phase; inner phases have no share of the whole that is known."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
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
