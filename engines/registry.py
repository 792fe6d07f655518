"""Which backends there are, what may follow their names, and which of them opens a given file.

A name is `NAME[:variant...]`: `onnxruntime`, `onnxruntime:cuda`, `torch:compile:cuda:fp16`. What a name leaves out is
the plain variant, and variants may stand in any order. On the command line a file may name its backend:
`model.onnx@onnxruntime:cuda`.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from engines.backend import Backend, Session
from engines.sealing import KIND
from toolchain.artifacts import read_sidecar, sidecar_of
from toolchain.errors import ArtifactError, UsageError, chosen


@dataclass(frozen=True)
class Entry:
    """Where a backend is.

    Attributes:
        module: imported when the backend is asked for: each loads a runtime of its own.
        class_name: in that module.
        variants: argument of the class -> what it may be, the plain one first.
        compiles_at_first_run: on the GPU, so that the kernels are worth keeping.
    """

    module: str
    class_name: str
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    compiles_at_first_run: bool = False


BACKENDS = {
    "onnxruntime": Entry(
        "engines.onnxruntime", "OnnxRuntimeBackend", variants={"provider": ("cpu", "cuda", "tensorrt")}
    ),
    "torch": Entry(
        "engines.torch_runtime",
        "TorchBackend",
        variants={"mode": ("eager", "compile"), "device": ("cpu", "cuda"), "precision": ("fp32", "fp16")},
    ),
    "tensorrt": Entry("engines.tensorrt", "TensorRTBackend"),
    "tensorrt-rtx": Entry("engines.tensorrt_rtx", "TensorRTRTXBackend", compiles_at_first_run=True),
    "memory": Entry("engines.memory", "MemoryBackend"),
}
"""By name."""


def backend(name: str) -> Backend:
    """The backend of this name.

    Raises:
        UsageError: there is none, or a variant that it does not have, or two that exclude each other.
    """
    return _made(*_parsed(name))


def file_and_backend(text: str) -> tuple[Path, str | None]:
    """What a file on the command line is, and the backend that is to open it: `model.onnx@onnxruntime:cuda`.

    The last `@` parts them, unless there is a file of the whole name; None: whichever backend the file is for.

    Raises:
        UsageError: no such backend, or nothing on one side of the `@`.
    """
    file, at, name = text.rpartition("@")
    if not at or "/" in name or Path(text).exists():
        return Path(text), None
    if not file or not name:
        raise UsageError(f"'{text}' names no {'backend' if file else 'file'}: write FILE@BACKEND, or FILE alone.")
    try:
        _parsed(name)
    except UsageError as error:
        raise UsageError(f"{text} is no file, and names no backend: {error}") from error
    return Path(file), name


def backend_of(path: Path) -> Backend:
    """The backend that opens this file: the one named in an engine's sidecar, ONNX Runtime for an ONNX file.

    Raises:
        ArtifactError: the file or an engine's sidecar is missing, or names no backend of ours.
    """
    return backend(_name_for(path))


def open_engine(
    path: Path, backend_name: str | None = None, runtime_caches: Path | None = None
) -> AbstractContextManager[Session]:
    """Open an ONNX file or an engine whose content matches its sidecar; see `Backend.open` for the errors.

    Args:
        path: the file.
        backend_name: what is to open it; None: the backend that it is for.
        runtime_caches: folder of the kernels that engines compile at their first run, a file for each engine; None:
            they are compiled anew. Backends that compile nothing have no use for it.

    Raises:
        UsageError: no such backend.
    """
    entry, arguments = _parsed(backend_name or _name_for(path))
    cache = {}
    if runtime_caches is not None and entry.compiles_at_first_run:
        cache["runtime_cache"] = runtime_caches / f"{read_sidecar(path).sha256[:16]}.cache"
    return _made(entry, {**arguments, **cache}).open(path)


def _name_for(path: Path) -> str:
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: check the path.")
    if path.suffix == ".onnx" and not (sidecar_of(path).exists() and read_sidecar(path).kind == KIND):
        return "onnxruntime"
    artifact = read_sidecar(path)
    name = str(artifact.metadata.get("backend"))
    if artifact.kind != KIND or name.partition(":")[0] not in BACKENDS:
        raise ArtifactError(f"{path} is of kind '{artifact.kind}', not an engine of a backend known here: build it.")
    return name


def _made(entry: Entry, arguments: Mapping[str, object]) -> Backend:
    found: Backend = getattr(import_module(entry.module), entry.class_name)(**arguments)
    return found


def _parsed(name: str) -> tuple[Entry, dict[str, str]]:
    """The entry of a name, and what its variants are as arguments of the class; UsageError as `backend`."""
    plain, *words = name.split(":")
    entry = chosen("backend", plain, BACKENDS)
    known = {variant: argument for argument, variants in entry.variants.items() for variant in variants}
    arguments: dict[str, str] = {}
    for word in words:
        if not known:
            raise UsageError(f"backend '{plain}' has no variants: leave ':{word}' out.")
        argument = chosen(f"variant of {plain}", word, known)
        if argument in arguments:
            raise UsageError(f"backend '{name}' is both {arguments[argument]} and {word}: name one of them.")
        arguments[argument] = word
    return entry, arguments
