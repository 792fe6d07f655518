"""What is packaged: a file that outlives this package, what it is, and what it takes and returns."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.backend import BatchProfile
from engines.onnx_graph import graph_from_onnx
from engines.registry import open_engine
from engines.sealing import KIND, session_metadata
from toolchain.artifacts import Artifact, load, sha256_of, sidecar_of
from toolchain.card import ModelCard, card_from_metadata
from toolchain.errors import ArtifactError, BackendError, ModelError
from toolchain.localizer import localizer_from_session

ONNXRUNTIME, TENSORRT, TENSORRT_RTX = "onnxruntime", "tensorrt", "tensorrt-rtx"
RUNTIMES = (ONNXRUNTIME, TENSORRT, TENSORRT_RTX)
"""Backends whose files can be run without this package."""
IMAGE = "image"
"""The input's name in every form of a localizer."""


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: as in the file.
        type: NumPy's name of the element type.
        dims: without the batch.
    """

    name: str
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """A file to package; its content is what its sidecar describes, where it has one.

    Attributes:
        path: engine or ONNX file.
        runtime: one of `RUNTIMES`.
        card: preprocessing, class names, tau.
        artifact: from the sidecar; None for an ONNX file without one.
        batch: sizes that the file accepts; None where it accepts any.
    """

    path: Path
    runtime: str
    card: ModelCard
    artifact: Artifact | None
    batch: BatchProfile | None

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the packages that made the file, as far as recorded."""
        return self.artifact.versions if self.artifact else {}

    @property
    def builder(self) -> tuple[str, str] | None:
        """Name and version of the package of TensorRT that built an engine of its; None where that is not recorded."""
        named = {name.replace("_", "-"): version for name, version in self.versions.items()}
        rtx = self.runtime == TENSORRT_RTX
        return next((x for x in named.items() if x[0].startswith("tensorrt") and ("rtx" in x[0]) == rtx), None)

    def copy_to(self, target: Path) -> None:
        """The file under another name, with its sidecar.

        Raises:
            ArtifactError: the copy is not what the sidecar describes.
        """
        shutil.copyfile(self.path, target)
        if self.artifact:
            shutil.copyfile(sidecar_of(self.path), sidecar_of(target))
            load(target)


def source_from_file(path: Path) -> Source:
    """Open an engine or ONNX file for packaging.

    Raises:
        ArtifactError: missing or changed, or an engine without a sidecar.
        ModelError: it has no card, a class name that is no line of text, or is neither ONNX nor of one of `RUNTIMES`.
    """
    # Anything but ONNX is somebody's code: without a sidecar nobody knows whose.
    artifact = load(path) if sidecar_of(path).exists() or path.suffix != ".onnx" else None
    runtime = artifact.metadata.get("backend") if artifact and artifact.kind == KIND else None
    if path.suffix == ".onnx" and not runtime:
        runtime = ONNXRUNTIME
    if runtime not in RUNTIMES:
        raise ModelError(f"{path} runs in lctr alone: package an ONNX file, or an engine of {', '.join(RUNTIMES)}.")
    travelled = session_metadata(artifact.metadata) if artifact else {}
    inside = graph_from_onnx(path).metadata if runtime == ONNXRUNTIME else {}
    card = card_from_metadata({**inside, **travelled}, str(path))
    for name in card.class_names:
        if name.splitlines() != [name]:
            raise ModelError(f"class name {name!r} of {path} is not one line: labels stand one a line; rename it.")
    return Source(path, runtime, card, artifact, _batch(artifact) if runtime != ONNXRUNTIME else None)


def tensors_of(source: Source) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The input and the outputs, read off a run of two blank images.

    Where the file itself does not run in ONNX Runtime, the ONNX file that it was built of does, beside it.

    Raises:
        ArtifactError: an engine whose ONNX file is not beside it.
        BackendError, ModelError: it does not run, is no localizer, or has a fixed batch.
    """
    runnable = source.path if source.runtime == ONNXRUNTIME else _built_of(source)
    side = source.card.preprocessing.image_size
    with open_engine(runnable) as session:
        localizer_from_session(session, str(runnable))
        try:
            outputs = session.run({IMAGE: np.zeros((2, 3, side, side), np.float32)})
        except BackendError as error:
            raise ModelError(f"{runnable} takes no batch of two ({error}) Export it with a dynamic batch.") from error
    made = tuple(Tensor(name, str(values.dtype), values.shape[1:]) for name, values in outputs.items())
    return Tensor(IMAGE, "float32", (3, side, side)), made


def _batch(artifact: Artifact | None) -> BatchProfile | None:
    recorded = artifact.parameters.get("batch") if artifact and artifact.kind == KIND else None
    return BatchProfile(*recorded) if recorded else None


def _built_of(source: Source) -> Path:
    wanted = source.artifact.inputs.get("model", {}).get("sha256") if source.artifact else None
    beside = (path for path in sorted(source.path.parent.glob("*.onnx")) if sha256_of(path) == wanted)
    if found := next(beside, None):
        return found
    raise ArtifactError(
        f"{source.path} does not say the shapes of its outputs, and the ONNX file that it was built of is not beside "
        f"it: copy that file to {source.path.parent}."
    )
