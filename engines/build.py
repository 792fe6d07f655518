"""Build an engine, unless it is there already, and refuse one that is not what its ONNX file asks for."""

from pathlib import Path

from engines.backend import BuildOptions
from engines.coverage import require
from engines.inspect import inspect
from engines.registry import backend
from engines.sealing import built
from engines.tensorrt_origin import is_for_another_gpu
from toolchain.artifacts import Artifact, read_sidecar, sidecar_of, writing
from toolchain.errors import UsageError
from toolchain.progress import Progress, silent

MIN_COVERAGE = 1.0
"""What a build must have of what its ONNX file asks for, where the builder lists what it compiled."""


def build(
    model: Path,
    backend_name: str,
    output: Path,
    options: BuildOptions,
    progress: Progress = silent,
    *,
    min_coverage: float | None = None,
    every_attention: bool = False,
) -> tuple[Artifact, bool]:
    """The engine of an ONNX file for the backend of this name, and whether an earlier build was reused.

    Args:
        model: ONNX file.
        backend_name: as in `engines.registry`.
        output: where the engine gets its name, once it is known to be what was asked for.
        options: of the build.
        progress: told the steps.
        min_coverage: least share of what the file asks for, 0 to 1, as `engines.coverage` counts it. None: 1 where the
            builder lists what it compiled. ONNX Runtime chooses its kernels when a file is loaded, for the CPU it is
            loaded on, so a build cannot promise them: only a number asks to run the engine here and count.
        every_attention: attention in FP32, which is never fused, counts as asking for it.

    Raises:
        UsageError: no such backend, or a coverage that is no share.
        BackendError: less than `min_coverage` was compiled as asked; no engine is left, or the one that was there.
        LctrError: see `Backend.build`.
    """
    if min_coverage is not None and not 0 <= min_coverage <= 1:
        raise UsageError(f"--min-coverage {min_coverage:g} is no share: give a number from 0 to 1.")
    builder = backend(backend_name)

    def hold(artifact: Artifact) -> None:
        if min_coverage is None and "compiled" not in artifact.metadata:
            return
        least = MIN_COVERAGE if min_coverage is None else min_coverage
        require(inspect(artifact.path), str(output), least, every_attention=every_attention)

    found = built(model, output, builder.name, options)
    if found and not is_for_another_gpu(found):
        hold(found)
        return found, True
    with writing(output) as temporary:
        hold(builder.build(model, temporary, options, progress))
        record = sidecar_of(temporary).read_text()
    with writing(sidecar_of(output)) as temporary:
        temporary.write_text(record)
    return read_sidecar(output), False
