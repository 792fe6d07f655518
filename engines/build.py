"""Build an engine, unless it is there already."""

from pathlib import Path

from engines.backend import BuildOptions
from engines.registry import backend
from engines.sealing import built
from toolchain.artifacts import Artifact
from toolchain.progress import Progress, silent


def build(
    model: Path, backend_name: str, output: Path, options: BuildOptions, progress: Progress = silent
) -> tuple[Artifact, bool]:
    """The engine of an ONNX file for the backend of this name, and whether an earlier build was reused.

    Raises:
        UsageError: no such backend.
        LctrError: see `Backend.build`.
    """
    builder = backend(backend_name)
    if found := built(model, output, backend_name, options):
        return found, True
    return builder.build(model, output, options, progress), False
