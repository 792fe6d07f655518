"""The arrows of the design, one function each: an artifact in, an artifact out, skipped where nothing changed."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from calib import image_set, synthesis
from calib import statistics as token_statistics
from exporters import parity
from exporters.files import write_onnx
from exporters.torch_export import onnx_from_torch
from toolchain.artifacts import Made, code_version, reusable, seal, writing
from toolchain.calibration import CalibrationSource
from toolchain.data.sources import files_of, open_data
from toolchain.errors import UsageError, chosen
from toolchain.evaluation import batches
from toolchain.half_precision import float16_from_weights, with_activations
from toolchain.model import checkpoint
from toolchain.model.deployment import AllMaps, DeployedLctr
from toolchain.model.lctr import ClassMaps, Lctr, Localized
from toolchain.progress import Progress, Step, silent, unwatched

if TYPE_CHECKING:
    from toolchain.training.run import Run, Trained

ONNX = "onnx"
MIN_IMAGES = 8
"""The fewest training images that a class center is made of: a center of one image would be that image."""
STATISTICS_IMAGES = 4096
"""Training images that `train` takes statistics of, at most: a mean of thousands does not move with more."""
SYNTHESIS = ("calib/synthesis.py", "calib/generator.py", "calib/losses.py", "calib/tokens.py", "calib/image_set.py")
"""The source that synthetic images depend on."""
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
TOLERANCES = {"fp32": parity.TOLERANCE, "fp16": 2e-2}
"""Of an output, by precision: what the graph may deviate from the model in float32."""
MAPS = {"top1": Localized._fields, "all": ClassMaps._fields}
"""Which maps a graph returns -> its outputs."""


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
