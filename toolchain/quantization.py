"""The arrow from a float ONNX file to one with explicit Q/DQ: equalize, observe, choose ranges, insert."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from calib import ranges
from calib.channels import IMAGES, channel_amax
from exporters.calibration_cache import cache_from_amax, tensors_of_implicit
from exporters.equalization import Equalized, Exponents, equalizable, equalized_from_float, exponents_of
from exporters.files import metadata_of, read_onnx, write_onnx
from exporters.image_input import image_input_of
from exporters.placement import Placement, casts_of, placement_from_model
from exporters.qdq import Quantized, graph_hash, observer_from_float, qdq_from_float
from exporters.scales import Levels
from toolchain import calibration
from toolchain.artifacts import Made, code_version, reusable, seal, writing
from toolchain.calibration import CalibrationSource
from toolchain.errors import ArtifactError, UsageError
from toolchain.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

ONNX_INT8 = "onnx-int8"
CALIBRATION_CACHE = "calibration-cache"
NOTHING_STATED = calibration.Stated()
KEPT_FLOAT = ("*_routing_fn_two*",)
"""Routing stays in float: two tiny layers in front of a sigmoid that scales every kernel of an image."""


def int8_onnx(
    model: Path,
    source: CalibrationSource,
    output: Path,
    *,
    method: str = "auto",
    keep_float: tuple[str, ...] = (),
    equalize: bool = True,
    attention: str = "none",
    stated: calibration.Stated = NOTHING_STATED,
    implicit: bool = False,
    progress: Progress = silent,
) -> Made:
    """Explicit Q/DQ with ranges observed on `source`; the ranges themselves stand beside, in `STEM.ranges.json`.

    Args:
        model: float ONNX file with one image input, ours or anybody's.
        source: calibration images.
        output: ONNX file to write.
        method: how a tensor's range is chosen.
        keep_float: patterns of products to leave float; in a localizer CDM's routing always is.
        equalize: whether the spread between an activation's channels moves into the weights first.
        attention: `none`, or `all` to quantize the four operands of each attention.
        stated: how images are prepared, where the model does not say it.
        implicit: whether to observe also what a calibration cache needs.
        progress: in images.

    Raises:
        LctrError: the model, the images or an option cannot be used.
    """
    if implicit and equalize:
        raise UsageError(
            "A calibration cache is for the float model as it is, and equalization changes it: give --no-equalize "
            "beside --cache."
        )
    choices = {"method": method, "implicit": implicit, "equalize": equalize}
    parameters = {**source.parameters, **stated.parameters, **_placing(keep_float, attention), **choices}
    inputs = {"model": model, **source.inputs}
    if found := _reusable_int8(output, parameters, inputs):
        return found
    graph = read_onnx(model)
    taken = image_input_of(graph)
    window = calibration.window_of(metadata_of(graph), taken, stated, model)
    placement_of(graph, keep_float, attention)  # Refuses what it cannot place before an image is run.
    with writing(output) as temporary:
        # In the same room: it goes when the block ends, however that is.
        observer = temporary.with_name("observer.onnx")
        exponents: Exponents = {}
        if equalize:
            exponents = exponents_on(
                *(graph, observer, source.images(window)),
                input_name=taken.name,
                images=source.count,
                attention=attention,
                progress=progress,
            )
        float_hash, (even, equalized) = graph_hash(graph), equalized_of(graph, exponents)
        # One copy of the weights is enough beside the runtime's own.
        del graph
        placement = placement_of(even, keep_float, attention)
        watched = tensors_of_implicit(even, placement) if implicit else placement.activations
        write_onnx(observer_from_float(even, watched), observer)
        observed = ranges.collect(
            observer, watched, source.images(window), input_name=taken.name, total=source.count, progress=progress
        )
        # Calibration images need not reach black and white, real ones do, and every pixel beyond would be clipped.
        # A float16 graph casts its input, and the patch embedding reads what was cast.
        known = dict.fromkeys(casts_of(even, taken.name), window.largest)
        chosen = ranges.ranges_from_histograms(observed, method, graph=float_hash, known=known, exponents=exponents)
        quantized, done = qdq_from_float(even, placement, chosen.amax)
        write_onnx(quantized, temporary)
    facts = _facts(done, chosen, equalized, source.description)
    return _sealed_int8(output, even, facts, chosen, parameters, inputs)


def int8_from_ranges(
    model: Path, range_file: Path, output: Path, *, keep_float: tuple[str, ...] = (), attention: str = "none"
) -> Made:
    """Explicit Q/DQ with the ranges and factors of a file, observed on this very graph; no image is run.

    Raises:
        ArtifactError: no range file, or one of another graph.
        ModelError: the model cannot be used, or a tensor that is to be quantized has no range in the file.
    """
    parameters = {"images": "none", **_placing(keep_float, attention)}
    inputs = {"model": model, "ranges": range_file}
    if found := _reusable_int8(output, parameters, inputs):
        return found
    graph = read_onnx(model)
    chosen = ranges.load(range_file, graph=graph_hash(graph))
    with writing(output) as temporary:
        even, equalized = equalized_of(graph, chosen.exponents)
        levels = {name: Levels(*ends) for name, ends in chosen.levels.items()}
        quantized, done = qdq_from_float(even, placement_of(even, keep_float, attention), chosen.amax, levels)
        write_onnx(quantized, temporary)
    facts = _facts(done, chosen, equalized, f"ranges in {range_file.name}")
    return _sealed_int8(output, graph, facts, chosen, parameters, inputs)


def calibration_cache(
    model: Path, range_file: Path, output: Path, version: int, *, keep_float: tuple[str, ...] = ()
) -> Made:
    """The ranges of a float model as a calibration cache for TensorRT 10.x.

    Args:
        model: the float ONNX file: the cache is used to build it, not the quantized one.
        range_file: its ranges, observed with `implicit`.
        output: cache to write.
        version: `version_number` of the TensorRT that will read it.
        keep_float: as for the quantized model.

    Raises:
        ArtifactError: the file holds ranges of another graph, of the equalized one, or too few.
    """
    parameters = {"version": version, "keep_float": [*keep_float]}
    inputs, code = {"model": model, "ranges": range_file}, code_version("exporters")
    if found := reusable(output, CALIBRATION_CACHE, parameters=parameters, inputs=inputs, code=code):
        return Made(found, True)
    graph = read_onnx(model)
    known = ranges.load(range_file, graph=graph_hash(graph))
    if known.exponents:
        raise ArtifactError(
            f"{range_file} holds the ranges of the equalized model, and a calibration cache is for the model as it is: "
            "observe images with --cache and --no-equalize."
        )
    amax = known.amax
    needed = tensors_of_implicit(graph, placement_of(graph, keep_float))
    if missing := [name for name in needed if name not in amax]:
        raise ArtifactError(
            f"{range_file} has no range of '{missing[0]}' ({len(missing)} of {len(needed)} tensors that a calibration "
            "cache needs are missing): observe images with --cache and --no-equalize."
        )
    text = cache_from_amax({name: amax[name] for name in needed}, version)
    with writing(output) as temporary:
        temporary.write_text(text)
    return Made(seal(output, CALIBRATION_CACHE, parameters=parameters, inputs=inputs, code=code), False)


def ranges_of(quantized: Path) -> Path:
    """Where the ranges of a quantized model stand: readable, one tensor a line."""
    return quantized.with_name(f"{quantized.stem}.ranges.json")


def placement_of(graph: "onnx.ModelProto", keep_float: tuple[str, ...], attention: str = "none") -> Placement:
    """Where Q/DQ stands; only a localizer has a routing to keep."""
    ours = "preprocessing" in metadata_of(graph)
    return placement_from_model(graph, (*KEPT_FLOAT, *keep_float) if ours else keep_float, attention)


def equalized_of(graph: "onnx.ModelProto", exponents: Exponents) -> "tuple[onnx.ModelProto, tuple[Equalized, ...]]":
    """A float graph as its ranges were observed, and what was done to it; a graph without exponents stays."""
    # Whatever the user keeps float is equalized, too: so ranges hold whether it is kept or not.
    return equalized_from_float(graph, placement_of(graph, ()).sites, exponents)


def exponents_on(
    graph: "onnx.ModelProto",
    observer: Path,
    batches: "Iterable[NDArray[np.float32]]",
    *,
    input_name: str,
    images: int,
    attention: str = "none",
    progress: Progress = silent,
) -> dict[str, tuple[int, ...]]:
    """Factors of the activations that gain by equalization, from the first images.

    Args:
        graph: float model.
        observer: file to write, and to leave.
        batches: normalized images (B, 3, S, S).
        input_name: of the graph.
        images: how many there are.
        attention: as for `int8_onnx`.
        progress: in images.
    """
    admitted = equalizable(graph, placement_of(graph, ()).sites, int8_attention=attention == "all")
    if not admitted:
        return {}
    tensors = list(dict.fromkeys(linears.channels.tensor for linears in admitted))
    write_onnx(observer_from_float(graph, tensors), observer)
    amax = channel_amax(
        *(observer, tensors, batches),
        input_name=input_name,
        images=min(IMAGES, images),
        heads={linears.channels.tensor for linears in admitted if linears.channels.by_head},
        progress=progress,
    )
    found = {linears.activation: exponents_of(linears, amax[linears.channels.tensor]) for linears in admitted}
    return {name: exponents for name, exponents in found.items() if any(exponents)}


def _placing(keep_float: tuple[str, ...], attention: str) -> dict[str, object]:
    """What decides the placement, for the sidecar."""
    return {"keep_float": [*keep_float], "always_float": [*KEPT_FLOAT], "attention": attention}


def _reusable_int8(output: Path, parameters: Mapping[str, object], inputs: Mapping[str, Path]) -> Made | None:
    # Without its ranges the model is no whole result.
    if not ranges_of(output).exists():
        return None
    found = reusable(output, ONNX_INT8, parameters=parameters, inputs=inputs, code=_int8_code())
    return Made(found, True) if found else None


def _sealed_int8(
    output: Path,
    graph: "onnx.ModelProto",
    facts: Mapping[str, object],
    chosen: ranges.Ranges,
    parameters: Mapping[str, object],
    inputs: Mapping[str, Path],
) -> Made:
    """The range file and the sidecar of a quantized model that stands already."""
    told = {**metadata_of(graph), **facts}
    ranges.save(chosen, ranges_of(output))
    return Made(seal(output, ONNX_INT8, parameters=parameters, inputs=inputs, metadata=told, code=_int8_code()), False)


def _int8_code() -> str:
    observing = ("calib/channels.py", "calib/histograms.py", "calib/thresholds.py", "calib/ranges.py")
    return code_version("exporters", *observing)


def facts_from_quantized(done: Quantized, chosen: ranges.Ranges) -> dict[str, object]:
    """What the sidecar of a quantized model says of its quantization."""
    return {
        "images": chosen.images,
        "ranges": {name: asdict(found) for name, found in chosen.tensors.items()},
        "levels": dict(chosen.levels),
        "quantized": list(done.names),
        "left_float": {left.name: left.reason for left in done.left},
        "zero_activations": list(done.zero_activations),
        "zero_channels": dict(done.zero_channels),
        "widened_channels": dict(done.widened_channels),
        "gathers": list(done.gathers),
    }


def _facts(
    done: Quantized, chosen: ranges.Ranges, equalized: Sequence[Equalized], calibrated: str
) -> dict[str, object]:
    told = {"equalized": [asdict(activation) for activation in equalized], "calibration": calibrated}
    return {**facts_from_quantized(done, chosen), **told}
