"""What the backends of TensorRT and TensorRT-RTX do alike: build an engine with its sidecar, and make sure of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from engines.backend import Availability, BuildOptions
from engines.compiled_products import inspection_from_dump
from engines.inspector_json import layer_dump_from_json
from engines.layer_dump import LayerDump, layer_dump_from_log
from engines.onnx_graph import graph_from_onnx
from engines.products import QUANTIZATION_OPS, computed_nodes, products_of
from engines.sealing import opened, sealed, session_metadata
from engines.tensorrt_api import Gpu, Product, gpu_here, loaded
from engines.tensorrt_build import Compiled, Order, compiled
from engines.tensorrt_calibration import read_cache
from engines.tensorrt_origin import RECORD, Origin, origin_of, origin_record
from toolchain.artifacts import Artifact, writing
from toolchain.errors import ArtifactError, BackendUnavailable, UsageError
from toolchain.progress import Progress


@dataclass(frozen=True)
class Ready:
    """An engine that may be deserialized here.

    Attributes:
        trt: the vendor's module.
        origin: what it was built for.
        gpu: that it is to run on.
        plan: its content.
        metadata: what travelled with the model.
    """

    trt: ModuleType
    origin: Origin
    gpu: Gpu
    plan: bytes
    metadata: Mapping[str, str]


def build_engine(
    product: Product,
    model: Path,
    output: Path,
    options: BuildOptions,
    progress: Progress,
    availability: Availability,
    *,
    on_gpu: bool = False,
) -> Artifact:
    """Build; the sidecar's `compiled` is the `Inspection` of what was listed, `built_for` what an `Origin` tells.

    Args:
        product: the builder.
        model: ONNX file.
        output: engine.
        options: that the product can honour.
        progress: told the steps.
        availability: of the backend.
        on_gpu: the builder needs a GPU, which the engine then is for, and which can load it to list its layers.

    Raises:
        LctrError: see `engines.backend.Backend.build`.
    """
    graph = graph_from_onnx(model)
    if not availability.build:
        raise BackendUnavailable(availability.reason)
    products = products_of(graph)
    calibration = read_cache(options.calibration_cache) if options.calibration_cache else None
    if calibration is not None and any(node.op in QUANTIZATION_OPS for node in graph.nodes):
        raise UsageError(f"{model} has Q/DQ, beside which no calibration cache counts: leave --calibration-cache out.")
    half = any(found.asked == "fp16" for found in products)
    timings = _timings(options.timing_cache) if options.timing_cache else None
    made = compiled(Order(product, model, options, calibration, half, timings, on_gpu), progress)
    if options.timing_cache and made.timings is not None:
        with writing(options.timing_cache) as temporary:
            temporary.write_bytes(made.timings)
    with writing(output) as temporary:
        temporary.write_bytes(made.plan)
    inspection = inspection_from_dump(product.backend, products, _layers(made), computed_nodes(graph))
    facts = {"compiled": inspection.as_dict(), RECORD: origin_record(product, made.version, model, on_gpu=on_gpu)}
    return sealed(model, output, product.backend, options, facts)


def ready(product: Product, engine: Path, availability: Availability, fits: Callable[[Origin, Gpu], bool]) -> Ready:
    """Make sure that an engine is whole and was built for this runtime and this GPU, and load the runtime.

    Args:
        product: the runtime.
        engine: with its sidecar.
        availability: of the backend.
        fits: whether an engine of this origin is for this GPU.

    Raises:
        LctrError: see `engines.backend.Backend.open`.
    """
    artifact = opened(engine, product.backend)
    gpu = gpu_here()
    if gpu is None or not availability.run:
        raise BackendUnavailable(f"{engine} is compiled ahead of time, not run: {availability.reason}")
    origin = origin_of(artifact, product)
    trt = loaded(product)
    origin.require(trt.__version__, gpu, fits=fits(origin, gpu))
    return Ready(trt, origin, gpu, engine.read_bytes(), session_metadata(artifact.metadata))


def _timings(path: Path) -> bytes:
    """What a timing cache holds; nothing, where there is none yet."""
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}): name another timing cache.") from error


def _layers(made: Compiled) -> LayerDump | None:
    """The inspector's list where there is one, or else the builder's."""
    listed = layer_dump_from_json(made.listing) if made.listing else None
    return listed or layer_dump_from_log(made.log)
