"""The arrows of the design, one function each: an artifact in, an artifact out, skipped where nothing changed."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from calib import image_set, synthesis
from calib import statistics as class_statistics
from exporters import parity
from exporters.files import write_onnx
from exporters.torch_export import onnx_from_torch
from toolchain.artifacts import Made, code_version, reusable, seal, writing
from toolchain.calibration import CalibrationSource, Stated
from toolchain.card import GUIDE
from toolchain.data.sources import files_of, open_data
from toolchain.errors import UsageError, chosen
from toolchain.evaluation import batches
from toolchain.half_precision import float16_from_weights, with_activations
from toolchain.model import checkpoint
from toolchain.model.deployment import AllMaps, DeployedLctr
from toolchain.model.lctr import ClassMaps, Localized
from toolchain.progress import Progress, Step, silent, unwatched
from toolchain.requests import Request, method_of
from toolchain.teachers import KnownTeacher, guide_teacher, localizer_teacher, statistics_of

if TYPE_CHECKING:
    from toolchain.training.guide import GuideRun
    from toolchain.training.run import Run, Trained

ONNX = "onnx"
MIN_IMAGES = 8
"""The fewest training images that a class center is made of: a center of one image would be that image."""
STATISTICS_IMAGES = 4096
"""Training images that `train` takes statistics of, at most: a mean of thousands does not move with more."""
LOOKING = tuple(f"calib/{name}.py" for name in ("moments", "observation", "teacher", "tokens", "batchnorm"))
"""The source that says what is seen of a network."""
STATISTICS = (*LOOKING, "calib/statistics.py", "toolchain/teachers.py")
"""The source that statistics depend on."""
SYNTHESIS = (
    *LOOKING,
    *(f"calib/{name}.py" for name in ("synthesis", "fdda", "generator", "candidates", "refinement")),
    *(f"calib/{name}.py" for name in ("patch_similarity", "noise", "descent", "losses", "alignment")),
    *(f"calib/{name}.py" for name in ("statistics", "image_set")),
    *("toolchain/requests.py", "toolchain/teachers.py"),
)
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
    target, told = statistics_of(output), step("statistics")
    made = statistics(localizer_teacher(output), run.data, target, images=images, min_images=min_images, progress=told)
    return trained, made


def guide(run: "GuideRun", model: Path, *, min_images: int = MIN_IMAGES, step: Step = unwatched) -> tuple[Made, Made]:
    """Train the guide of the localizer `model` on the same images, and take its statistics.

    Returns:
        the guide, with its accuracy on the validation images in percent (`top1`) in the metadata, and the statistics.
    """
    from toolchain.training.guide import train_guide

    output = guide_of(model)
    parameters = run.parameters()
    code = code_version("toolchain/model/guide.py", "toolchain/training", "toolchain/data")
    found = reusable(output, GUIDE, parameters=parameters, inputs={}, code=code)
    made = Made(found, True) if found else None
    if made is None:
        top1 = train_guide(run, output, step)
        made = Made(seal(output, GUIDE, parameters=parameters, metadata={"top1": top1}, code=code), False)
    images = min(run.localizer.images or STATISTICS_IMAGES, STATISTICS_IMAGES)
    known, told = guide_teacher(str(output), Stated()), step("statistics of the guide")
    target = statistics_of(output)
    return made, statistics(known, run.localizer.data, target, images=images, min_images=min_images, progress=told)


def guide_of(model: Path) -> Path:
    """Where the guide of a model stands."""
    return model.with_name(f"{model.stem}.guide.safetensors")


def statistics(
    known: KnownTeacher,
    data: str,
    output: Path,
    *,
    images: int | None = None,
    min_images: int = MIN_IMAGES,
    progress: Progress = silent,
) -> Made:
    """Class statistics of a localizer or a guide over the training images of `data`."""
    parameters = {"data": data, "images": images, "min_images": min_images, **known.parameters}
    inputs = {**files_of(data, known.window), **known.inputs}
    code = code_version(*STATISTICS, "toolchain/model", "toolchain/data")
    found = reusable(output, class_statistics.KIND, parameters=parameters, inputs=inputs, code=code)
    if found:
        return Made(found, True)
    training = open_data(data, "train", known.window, images)

    def labelled() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        done = 0
        for some, labels, _ in batches(training, known.window, 16):
            yield torch.from_numpy(some), torch.tensor(labels)
            progress(done := done + len(labels), len(training))

    collected = class_statistics.collect(
        known.teacher, known.view, labelled(), min_images=min_images, chosen=known.chosen
    )
    written = class_statistics.save(
        collected,
        output,
        known.sha256,
        class_names=known.class_names,
        parameters=parameters,
        inputs=inputs,
        code=code,
    )
    return Made(written, False)


def synthetic(
    known: KnownTeacher,
    bundle: Path | None,
    output: Path,
    request: Request,
    *,
    progress: Progress = silent,
) -> Made:
    """Synthetic calibration images for a localizer or a guide, from the network and its statistics alone.

    Args:
        known: the network.
        bundle: its statistics; None: nobody has them.
        output: folder.
        request: which images.
        progress: counts steps.

    Raises:
        UsageError: a request that cannot be meant, or not of this network.
        ArtifactError, ModelError, TrainingError: see there.
    """
    inputs = {**known.inputs} | ({"statistics": bundle} if bundle else {})
    parameters = {**known.parameters, **asdict(request)}
    code = code_version(*SYNTHESIS, "toolchain/model")
    found = reusable(output, image_set.KIND, parameters=parameters, inputs=inputs, code=code)
    if found:
        return Made(found, True)
    measured = class_statistics.load(bundle, known.sha256, known.name) if bundle else None
    method = method_of(request, known, measured)
    images = synthesis.synthesize(method, known.teacher, count=request.count, seed=request.seed, progress=progress)
    written = image_set.write(images, output, known.class_names, parameters=parameters, inputs=inputs, code=code)
    return Made(written, False)


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
