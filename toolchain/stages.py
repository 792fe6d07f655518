"""The arrows of the design, one function each: an artifact in, an artifact out, skipped where nothing changed."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from calib import image_set, ranges, synthesis
from calib import statistics as token_statistics
from exporters import parity
from exporters.files import metadata_of, read_onnx, write_onnx
from exporters.placement import placement_from_model
from exporters.qdq import Quantized, graph_hash, observer_from_float, qdq_from_float
from exporters.torch_export import INPUT, onnx_from_torch
from toolchain.artifacts import Artifact, code_version, reusable, seal, writing
from toolchain.calibration import CalibrationSource
from toolchain.card import card_from_metadata
from toolchain.data.sources import files_of, open_data
from toolchain.errors import chosen
from toolchain.evaluation import batches
from toolchain.model import checkpoint
from toolchain.model.deployment import AllMaps, DeployedLctr
from toolchain.model.lctr import ClassMaps, Lctr, Localized
from toolchain.progress import Progress, Step, silent, unwatched

if TYPE_CHECKING:
    from toolchain.training.run import Run, Trained

ONNX = "onnx"
ONNX_INT8 = "onnx-int8"
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


def float_onnx(model: Path, output: Path, *, precision: str = "fp32", maps: str = "top1") -> Made:
    """The localizer as ONNX in its deployed form, compared with the plain model before it gets its name.

    Args:
        model: checkpoint.
        output: ONNX file to write.
        precision: `fp32` or `fp16`; inputs and outputs are float32 in both.
        maps: `top1` for the predicted class's fused map, `all` for every class's map and RPAM's.

    Raises:
        UsageError: another precision, or other maps.
        ArtifactError, ModelError: the checkpoint cannot be used.
        ParityError: the graph deviates from the plain model by more than the precision's tolerance.
    """
    dtype, names = chosen("--precision", precision, PRECISIONS), chosen("--maps", maps, MAPS)
    parameters, inputs = {"precision": precision, "maps": maps}, {"model": model}
    code = code_version("exporters", "toolchain/model")
    found = reusable(output, ONNX, parameters=parameters, inputs=inputs, code=code)
    if found:
        return Made(found, True)
    network, card = checkpoint.load(model)
    metadata = card.to_metadata()
    size = card.preprocessing.image_size
    every = maps == "all"
    deployed = DeployedLctr(network, all_maps=every, precision=dtype)
    with writing(output) as temporary:
        write_onnx(onnx_from_torch(deployed, image_size=size, metadata=metadata, output_names=names), temporary)
        held = parity.compare(
            AllMaps(network) if every else network, temporary, image_size=size, tolerance=TOLERANCES[precision]
        )
    facts = {**metadata, "parity": held.as_dict()}
    return Made(seal(output, ONNX, parameters=parameters, inputs=inputs, metadata=facts, code=code), False)


def int8_onnx(
    model: Path,
    source: CalibrationSource,
    output: Path,
    *,
    method: str = "auto",
    keep_float: tuple[str, ...] = KEPT_FLOAT,
    progress: Progress = silent,
) -> Made:
    """Explicit Q/DQ with ranges observed on `source`; the ranges themselves stand beside, in `STEM.ranges.json`."""
    parameters = {**source.parameters, "method": method, "keep_float": list(keep_float)}
    inputs = {"model": model, **source.inputs}
    code = code_version("exporters", "calib/histograms.py", "calib/thresholds.py", "calib/ranges.py")
    found = reusable(output, ONNX_INT8, parameters=parameters, inputs=inputs, code=code)
    if found:
        return Made(found, True)
    graph = read_onnx(model)
    metadata = metadata_of(graph)
    window = card_from_metadata(metadata, str(model)).preprocessing
    images = source.images(window)
    placement = placement_from_model(graph, keep_float)
    with writing(output) as temporary:
        # In the same room: it goes when the block ends, however that is.
        observer = temporary.with_name("observer.onnx")
        write_onnx(observer_from_float(graph, placement.activations), observer)
        observed = ranges.collect(observer, placement.activations, images, total=source.count, progress=progress)
        # Calibration images need not reach black and white, real ones do, and every pixel beyond would be clipped.
        known = {INPUT: window.largest}
        chosen = ranges.ranges_from_histograms(observed, method, graph=graph_hash(graph), known=known)
        quantized, done = qdq_from_float(graph, placement, chosen.amax)
        write_onnx(quantized, temporary)
    ranges.save(chosen, ranges_of(output))
    facts = {**metadata, **facts_from_quantized(done, chosen), "calibration": source.description}
    return Made(seal(output, ONNX_INT8, parameters=parameters, inputs=inputs, metadata=facts, code=code), False)


def ranges_of(quantized: Path) -> Path:
    """Where the ranges of a quantized model stand: readable, one tensor a line."""
    return quantized.with_name(f"{quantized.stem}.ranges.json")


def facts_from_quantized(done: Quantized, chosen: ranges.Ranges) -> dict[str, object]:
    """What the sidecar of a quantized model says of its quantization."""
    return {
        "images": chosen.images,
        "quantized": [site.name for site in done.sites],
        "left_float": {left.name: left.reason for left in done.left},
        "zero_activations": list(done.zero_activations),
        "zero_channels": dict(done.zero_channels),
        "widened_channels": dict(done.widened_channels),
    }
