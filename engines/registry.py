"""Which backends there are, and which of them opens a given file."""

from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path

from engines.backend import Backend, Session
from engines.sealing import KIND
from toolchain.artifacts import read_sidecar, sidecar_of
from toolchain.errors import ArtifactError, chosen

BACKENDS = {
    "onnxruntime": ("engines.onnxruntime", "OnnxRuntimeBackend"),
    "tensorrt": ("engines.tensorrt", "TensorRTBackend"),
    "tensorrt-rtx": ("engines.tensorrt_rtx", "TensorRTRTXBackend"),
    "memory": ("engines.memory", "MemoryBackend"),
}
"""Name -> module and class. A module is imported when its backend is asked for: each loads a runtime of its own."""


def backend(name: str) -> Backend:
    """The backend of this name.

    Raises:
        UsageError: there is none.
    """
    module, class_ = chosen("backend", name, BACKENDS)
    found: Backend = getattr(import_module(module), class_)()
    return found


def backend_of(path: Path) -> Backend:
    """The backend that opens this file: the one named in an engine's sidecar, ONNX Runtime for an ONNX file.

    Raises:
        ArtifactError: the file or an engine's sidecar is missing, or names no backend of ours.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: check the path.")
    if path.suffix == ".onnx" and not (sidecar_of(path).exists() and read_sidecar(path).kind == KIND):
        return backend("onnxruntime")
    artifact = read_sidecar(path)
    name = artifact.metadata.get("backend")
    if artifact.kind != KIND or name not in BACKENDS:
        raise ArtifactError(f"{path} is of kind '{artifact.kind}', not an engine of a backend known here: build it.")
    return backend(name)


def open_engine(path: Path) -> AbstractContextManager[Session]:
    """Open an ONNX file or an engine whose content matches its sidecar; see `Backend.open` for the errors."""
    return backend_of(path).open(path)
