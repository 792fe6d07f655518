"""What is in a file: the type and kernel of every matrix product, by ONNX node name."""

from pathlib import Path

from engines.inspection import Inspection, inspection_from_dict
from engines.registry import backend_of
from engines.sealing import opened
from toolchain.errors import BackendError


def inspect(path: Path) -> Inspection:
    """Inspect an ONNX file (as ONNX Runtime runs it here) or an engine.

    An engine that was compiled for a GPU is described by what its builder listed, as its sidecar records; ONNX Runtime
    runs one batch of one image under its profiler.

    Raises:
        ArtifactError: the file is missing, or an engine is not what its sidecar describes.
        ModelError: an ONNX file is truncated.
        BackendError: the file cannot be run, or its backend keeps no record of kernels.
    """
    name = backend_of(path).name
    if name == "onnxruntime":
        from engines.onnxruntime import OnnxRuntimeBackend, source_products
        from engines.ran_products import inspection_from_kernels

        return inspection_from_kernels(name, source_products(path), OnnxRuntimeBackend().kernels_run(path))
    record = opened(path, name).metadata.get("compiled")
    if record is None:
        raise BackendError(f"{path} was built by the backend '{name}', which lists no kernels: inspect another file.")
    return inspection_from_dict(record)
