"""Write a package as one artifact: whole or not at all, and skipped where nothing changed."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from toolchain.artifacts import Made, code_version, load, reusable, seal, sidecar_of, writing
from toolchain.errors import ArtifactError, UsageError, chosen
from toolchain.packaging.folder import write_folder
from toolchain.packaging.source import Source, source_from_file
from toolchain.packaging.texts import TEMPLATES
from toolchain.packaging.triton import TritonOptions, write_triton

KIND = "package"
FORMATS: dict[str, Callable[[Source, TritonOptions, Path], None]] = {
    "triton": write_triton,
    "folder": lambda source, _, room: write_folder(source, room),
}


def package(file: Path, format_: str, output: Path, options: TritonOptions | None = None) -> Made:
    """Package an engine or ONNX file of a localizer.

    Args:
        file: with its sidecar beside it; an ONNX file may be without one.
        format_: a key of `FORMATS`.
        output: folder to write: new, empty, or a package that nobody changed.
        options: of the format `triton`; None: the defaults.

    Raises:
        UsageError: an unknown format, or an option that the file cannot honour.
        ArtifactError: the file is missing or changed, or `output` holds something else.
        BackendError, ModelError: nothing of this format runs the file.
    """
    write = chosen("--format", format_, FORMATS)
    options = options or TritonOptions()
    _require_ours(output)
    source = source_from_file(file)
    parameters = {"format": format_, "file": file.name, **(asdict(options) if format_ == "triton" else {})}
    code = code_version(
        "toolchain/packaging", *sorted(f"toolchain/templates/package/{t.name}" for t in TEMPLATES.iterdir())
    )
    inputs = {"model": file}
    if found := reusable(output, KIND, parameters=parameters, inputs=inputs, code=code):
        return Made(found, True)
    with writing(output, folder=True) as room:
        write(source, options, room)
    return Made(seal(output, KIND, parameters=parameters, inputs=inputs, code=code), False)


def _require_ours(output: Path) -> None:
    """Refuse to write over anything but a package as it was written, and nothing."""
    if output.name in ("", ".."):
        raise UsageError(f"-o {output} has no name that a sidecar could be found by: name a folder.")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not sidecar_of(output).exists():
        raise ArtifactError(f"{output} holds files that lctr did not write: name another folder, or empty it.")
    try:
        load(output, KIND)
    except ArtifactError as error:
        raise ArtifactError(f"{error} To package over it, empty the folder first.") from error
