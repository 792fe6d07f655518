"""The arrows of the design, one function each: an artifact in, an artifact out, skipped where nothing changed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from calib import image_set, ranges, synthesis
from calib import statistics as token_statistics
from calib.channels import IMAGES, channel_amax
from exporters import parity
from exporters.calibration_cache import cache_from_amax, tensors_of_implicit
from exporters.equalization import Equalized, Exponents, equalizable, equalized_from_float, exponents_of
from exporters.files import metadata_of, read_onnx, write_onnx
from exporters.image_input import image_input_of
from exporters.placement import Placement, casts_of, placement_from_model
from exporters.qdq import Quantized, graph_hash, observer_from_float, qdq_from_float
from exporters.torch_export import onnx_from_torch
from toolchain import calibration
from toolchain.artifacts import Artifact, code_version, reusable, seal, writing
from toolchain.calibration import CalibrationSource
from toolchain.data.sources import files_of, open_data
from toolchain.errors import ArtifactError, UsageError, chosen
from toolchain.evaluation import batches
from toolchain.half_precision import float16_from_weights, with_activations
from toolchain.model import checkpoint
from toolchain.model.deployment import AllMaps, DeployedLctr
from toolchain.model.lctr import ClassMaps, Lctr, Localized
from toolchain.preprocessing import Preprocessing
from toolchain.progress import Progress, Step, silent, unwatched

if TYPE_CHECKING:
    import onnx

    from toolchain.training.run import Run, Trained

ONNX = "onnx"
ONNX_INT8 = "onnx-int8"
CALIBRATION_CACHE = "calibration-cache"
NOTHING_STATED = calibration.Stated()
MIN_IMAGES = 8
"""The fewest training images that a class center is made of: a center of one image would be that image."""
STATISTICS_IMAGES = 4096
"""Training images that `train` takes statistics of, at most: a mean of thousands does not move with more."""
SYNTHESIS = ("calib/synthesis.py", "calib/generator.py", "calib/losses.py", "calib/tokens.py", "calib/image_set.py")
"""The source that synthetic images depend on."""
KEPT_FLOAT = ("*_routing_fn_two*",)
"""Routing stays in float: two tiny layers in front of a sigmoid that scales every kernel of an image."""
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
TOLERANCES = {"fp32": parity.TOLERANCE, "fp16": 2e-2}
"""Of an output, by precision: what the graph may deviate from the model in float32."""
MAPS = {"top1": Localized._fields, "all": ClassMaps._fields}
"""Which maps a graph returns -> its outputs."""


@dataclass(frozen=True)
class Made:
    """An artifact, and whether it was already there."""

    artifact: Artifact
    reused: bool


def train(
    run: "Run", output: Path, *, min_images: int = MIN_IMAGES, step: Step = unwatched
) -> "tuple[Trained, Made] | None":
    """Train a localizer, then take its token statistics: where the data is now, and need not be later.

    Returns:
        None in all processes of a distributed training but the first.
    """
    # What trains is not installed where everything else is.
    from toolchain.training.run import train_localizer

    trained = train_localizer(run, output, step)
    if trained is None:
        return None
    validated = trained.validated
    judged = asdict(validated.evaluation) if validated.evaluation else {"top1": validated.top1, "tau": validated.tau}
    seal(
        output,
        checkpoint.KIND,
        parameters=run.identity(),
        inputs={"init": run.init} if run.init else {},
        metadata={"validation": judged, "epochs": [asdict(log) for log in trained.logs]},
        code=code_version("toolchain/model", "toolchain/training", "toolchain/data"),
    )
    images = min(run.images or STATISTICS_IMAGES, STATISTICS_IMAGES)
    made = statistics(
        output, run.data, statistics_of(output), images=images, min_images=min_images, progress=step("statistics")
    )
    return trained, made


def statistics_of(model: Path) -> Path:
    """Where the statistics of a model stand unless somebody put them elsewhere."""
    return model.with_name(f"{model.stem}.statistics.safetensors")


def statistics(
    model: Path,
    data: str,
    output: Path,
    *,
    images: int | None = None,
    min_images: int = MIN_IMAGES,
    progress: Progress = silent,
) -> Made:
    """Token-statistic centers of a localizer over the training images of `data`."""
    card = checkpoint.card_of(model)
    parameters = {"data": data, "images": images, "min_images": min_images}
    inputs = {"model": model, **files_of(data, card.preprocessing)}
    code = code_version("calib/statistics.py", "calib/tokens.py", "toolchain/model", "toolchain/data")
    found = reusable(output, token_statistics.KIND, parameters=parameters, inputs=inputs, code=code)
    if found:
        return Made(found, True)
    network, _ = checkpoint.load(model)
    training = open_data(data, "train", card.preprocessing, images)

    def labelled() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        done = 0
        for some, labels, _ in batches(training, card.preprocessing, 16):
            yield torch.from_numpy(some), torch.tensor(labels)
            progress(done := done + len(labels), len(training))

    collected = token_statistics.collect(
        network, layer_norm_inputs(network), labelled(), len(card.class_names), min_images=min_images
    )
    written = token_statistics.save(collected, output, model, parameters=parameters, inputs=inputs, code=code)
    return Made(written, False)


def layer_norm_inputs(model: Lctr) -> list[str]:
    """Names of the LayerNorms of a localizer: their inputs are the residual stream."""
    inside = [f"blocks.{block}.{norm}" for block in range(model.preset.depth) for norm in ("norm1", "norm2")]
    return [*inside, "norm"]


def synthetic(
    model: Path,
    bundle: Path | None,
    output: Path,
    *,
    count: int,
    steps: int = synthesis.SynthesisConfig.steps,
    seed: int = 0,
    progress: Progress = silent,
) -> Made:
    """Synthetic calibration images by FDDA, from the model and its statistics alone; `bundle` None: without them."""
    parameters = {"count": count, "steps": steps, "seed": seed}
    inputs = {"model": model} | ({"statistics": bundle} if bundle else {})
    code = code_version(*SYNTHESIS, "toolchain/model")
    found = reusable(output, image_set.KIND, parameters=parameters, inputs=inputs, code=code)
    if found:
        return Made(found, True)
    network, card = checkpoint.load(model)
    window = card.preprocessing
    images = synthesis.synthesize(
        network,
        token_statistics.load(bundle, model) if bundle else None,
        synthesis.SynthesisConfig(steps=steps),
        image_size=window.image_size,
        mean=window.mean,
        std=window.std,
        count=count,
        seed=seed,
        logits=_class_logits,
        progress=progress,
    )
    written = image_set.write(
        images, output, card.class_names, seed=seed, parameters=parameters, inputs=inputs, code=code
    )
    return Made(written, False)


def _class_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Without the map: the generator needs no gradient of the attention maps' product."""
    localizer = cast(Lctr, model)
    return localizer.classify(localizer.cues(images)).logits


def float_onnx(
    model: Path,
    output: Path,
    *,
    precision: str = "fp32",
    maps: str = "top1",
    source: CalibrationSource | None = None,
    progress: Progress = silent,
) -> Made:
    """The localizer as ONNX in its deployed form, compared with the plain model before it gets its name.

    Args:
        model: checkpoint.
        output: ONNX file to write.
        precision: `fp32` or `fp16`; inputs and outputs are float32 in both.
        maps: `top1` for the predicted class's fused map, `all` for every class's map and RPAM's.
        source: images on which to look for what FP16 cannot hold of the activations; of the weights is always looked.
        progress: of the images.

    Raises:
        UsageError: another precision, other maps, or images where nothing is in FP16.
        ArtifactError, ModelError: the checkpoint cannot be used, or FP16 cannot hold it.
        ParityError: the graph deviates from the plain model by more than the precision's tolerance.
    """
    dtype, names = chosen("--precision", precision, PRECISIONS), chosen("--maps", maps, MAPS)
    if source and precision != "fp16":
        raise UsageError(f"Images show what FP16 cannot hold, and --precision is {precision}: leave --images out.")
    parameters: dict[str, object] = {"precision": precision, "maps": maps}
    inputs = {"model": model}
    if source:
        parameters, inputs = parameters | {"source": source.parameters}, inputs | dict(source.inputs)
    code = code_version("exporters", "toolchain/model", "toolchain/half_precision.py", "calib/float16.py")
    found = reusable(output, ONNX, parameters=parameters, inputs=inputs, code=code)
    if found:
        return Made(found, True)
    network, card = checkpoint.load(model)
    metadata = card.to_metadata()
    size = card.preprocessing.image_size
    every = maps == "all"

    def export(as_type: torch.dtype, path: Path) -> None:
        deployed = DeployedLctr(network, all_maps=every, precision=as_type)
        write_onnx(onnx_from_torch(deployed, image_size=size, metadata=metadata, output_names=names), path)

    half = float16_from_weights(network) if precision == "fp16" else None
    with writing(output) as temporary:
        export(dtype, temporary)
        if half and source:
            # In the same room, as what is observed there: both go when the block ends.
            single = temporary.with_name("float32.onnx")
            export(torch.float32, single)
            images = source.images(card.preprocessing)
            half = with_activations(half, single, temporary, images, total=source.count, progress=progress)
        held = parity.compare(
            AllMaps(network) if every else network, temporary, image_size=size, tolerance=TOLERANCES[precision]
        )
    facts = {**metadata, "parity": held.as_dict()} | ({"float16": half.as_dict()} if half else {})
    return Made(seal(output, ONNX, parameters=parameters, inputs=inputs, metadata=facts, code=code), False)


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
        exponents = _exponents(graph, observer, source, window, taken.name, progress) if equalize else {}
        even, equalized = equalized_of(graph, exponents)
        placement = placement_of(even, keep_float, attention)
        watched = tensors_of_implicit(even, placement) if implicit else placement.activations
        write_onnx(observer_from_float(even, watched), observer)
        observed = ranges.collect(
            observer, watched, source.images(window), input_name=taken.name, total=source.count, progress=progress
        )
        # Calibration images need not reach black and white, real ones do, and every pixel beyond would be clipped.
        # A float16 graph casts its input, and the patch embedding reads what was cast.
        known = dict.fromkeys(casts_of(graph, taken.name), window.largest)
        chosen = ranges.ranges_from_histograms(
            observed, method, graph=graph_hash(graph), known=known, exponents=exponents
        )
        quantized, done = qdq_from_float(even, placement, chosen.amax)
        write_onnx(quantized, temporary)
    facts = _facts(done, chosen, equalized, source.description)
    return _sealed_int8(output, graph, facts, chosen, parameters, inputs)


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
        quantized, done = qdq_from_float(even, placement_of(even, keep_float, attention), chosen.amax)
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


def _exponents(
    graph: "onnx.ModelProto",
    observer: Path,
    source: CalibrationSource,
    window: Preprocessing,
    input_name: str,
    progress: Progress,
) -> dict[str, tuple[int, ...]]:
    """Factors of the activations that gain by them, from the first images; `observer` is written and left."""
    admitted = {linears.activation: linears for linears in equalizable(graph, placement_of(graph, ()).sites)}
    if not admitted:
        return {}
    write_onnx(observer_from_float(graph, [*admitted]), observer)
    images = min(IMAGES, source.count)
    amax = channel_amax(
        observer, [*admitted], source.images(window), input_name=input_name, images=images, progress=progress
    )
    found = {name: exponents_of(linears, amax[name]) for name, linears in admitted.items()}
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
