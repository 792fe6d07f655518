"""`lctr finetune`: from a network and images on disk to a tuned checkpoint and a Q/DQ graph that computes the same."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from calib import ranges as range_files
from calib.teacher import logits_of
from engines.registry import open_engine
from exporters.files import read_onnx, write_onnx
from toolchain import quantization, stages
from toolchain.artifacts import Artifact, Made, code_version, seal, writing
from toolchain.calibration import Stated
from toolchain.card import GUIDE
from toolchain.data.sources import files_of
from toolchain.errors import UsageError, chosen
from toolchain.finetuning.construction import student_from_float
from toolchain.finetuning.images import Images, images_in, training_images
from toolchain.finetuning.loop import Schedule, finetune, measure, write_log
from toolchain.finetuning.results import CODE, NETWORK, Finetuned, Identity, float_of, log_of, quantized_of, state_of
from toolchain.finetuning.student import Bits, Form, Student
from toolchain.guides import NamedGuide, guide_from_spec
from toolchain.model import checkpoint
from toolchain.model.cdm import TAPS
from toolchain.model.deployment import DeployedLctr
from toolchain.model.lctr import Lctr, Localized
from toolchain.preprocessing import Preprocessing
from toolchain.progress import Step, unwatched

MEASURED = 256
"""Images that the result is compared with the teacher on, and the error of its ranges measured, at most."""
COMPARED = 16
"""Images that the graph is compared with the student on."""
DEVICES = {"cpu": lambda: True, "cuda": torch.cuda.is_available}


@dataclass(frozen=True)
class Asked:
    """What is asked of a fine-tuning, whichever network it is of.

    Attributes:
        images: folder of synthetic images; a set of ours brings its labels.
        bits: of the quantizers.
        schedule: of the tuning.
        real_images: folder of real images without labels.
        data: data set whose training images are real images with labels.
        count: of those, at most.
        keep_float: patterns of products to leave float.
        equalize: whether the spread between an activation's channels moves into the weights first.
        device: `cpu` or `cuda`.
    """

    images: Path
    bits: Bits
    schedule: Schedule
    real_images: Path | None = None
    data: str | None = None
    count: int | None = None
    keep_float: tuple[str, ...] = ()
    equalize: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.real_images and self.data:
            raise UsageError("--real-images and --data both name real images: leave one out.")
        if self.count is not None and not (self.data or self.real_images):
            raise UsageError("--count is of real images: name them with --real-images or --data.")

    @property
    def parameters(self) -> dict[str, Any]:
        """What the result depends on, beside files."""
        kept = {"data": self.data, "count": self.count, "keep_float": [*self.keep_float], "equalize": self.equalize}
        return {**asdict(self.bits), **asdict(self.schedule), **kept, "device": self.device}

    def inputs(self, window: Preprocessing) -> dict[str, Path]:
        """The files and folders that it depends on."""
        found = {"images": self.images, **(files_of(self.data, window) if self.data else {})}
        return found | ({"real images": self.real_images} if self.real_images else {})

    def real(self, window: Preprocessing) -> Images | None:
        """The real images, if there are any: with labels only from a data set."""
        if self.real_images:
            return Images(images_in(self.real_images, window, self.count).pixels)
        return training_images(self.data, window, self.count) if self.data else None


def finetuned_localizer(model: Path, output: Path, asked: Asked, step: Step = unwatched) -> Finetuned:
    """Tune a localizer of ours; the result is a checkpoint like any other, with its Q/DQ graph beside it.

    Raises:
        LctrError: the checkpoint, the images or an option cannot be used, or the tuning diverged.
    """
    _require_another(output, {"model": model})
    card = checkpoint.card_of(model)
    window = card.preprocessing
    identity = Identity(checkpoint.KIND, asked.parameters, {"model": model, **asked.inputs(window)})
    if found := identity.finished(output):
        return found
    localizer, _ = checkpoint.load(model)
    form = Form(window.image_size, card.to_metadata(), Localized._fields, window.largest, asked.keep_float)
    tuned = _tuned(DeployedLctr(localizer), form, window, output, asked, identity, step)
    checkpoint.save(localizer_from_deployed(localizer, tuned.student.network_state()), card, output)
    artifact = identity.sealed(output, tuned.facts)
    step("export")
    stages.float_onnx(output, float_of(output))
    return _deployed(tuned, artifact, asked)


def finetuned_network(
    guide: str, stated: Stated, num_classes: int | None, output: Path, asked: Asked, step: Step = unwatched
) -> Finetuned:
    """Tune a classifier that is no localizer; the result has its Q/DQ graph beside it.

    The result of a guide of ours is another one, that of a factory's network its state dict in safetensors.

    Args:
        guide: `FILE.safetensors` of `lctr train --guide`, or `package.module:factory` of the float network, its weights
            loaded.
        stated: what a factory's images are.
        num_classes: that a factory's network must have; None: whatever it has.
        output: .safetensors file to write.
        asked: the rest.
        step: of the run.

    Raises:
        LctrError: the network, the images or an option cannot be used, or the tuning diverged.
    """
    named = guide_from_spec(guide, stated, num_classes)
    _require_another(output, named.inputs)
    network, window = named.network, named.window
    parameters, inputs = {**named.parameters, **asked.parameters}, {**named.inputs, **asked.inputs(window)}
    identity = Identity(GUIDE if named.card else NETWORK, parameters, inputs)
    if found := identity.finished(output):
        return found
    form = Form(window.image_size, largest_pixel=window.largest, keep_float=asked.keep_float)
    tuned = _tuned(network, form, window, output, asked, identity, step)
    _save(named, tuned.student.network_state(), output)
    artifact = identity.sealed(output, tuned.facts)
    step("export")
    with writing(float_of(output)) as temporary:
        write_onnx(form.graph_of(tuned.student.plain()), temporary)
    seal(float_of(output), stages.ONNX, inputs={"model": output}, code=code_version(*CODE))
    return _deployed(tuned, artifact, asked)


def localizer_from_deployed(localizer: Lctr, state: Mapping[str, Tensor]) -> Lctr:
    """A localizer with the parameters of its deployed form, whose kernels have their nine taps in one row.

    Args:
        localizer: of the same shape; not changed.
        state: of the `DeployedLctr`.
    """
    tuned = copy.deepcopy(localizer)
    experts, classes, dim = tuned.CDM.weight.shape[:3]
    side = round(TAPS**0.5)
    rows = state["head.kernels.weight"].reshape(experts, classes, side, side, dim)
    shared = {name: value for name, value in state.items() if not name.startswith("head.")}
    tuned.load_state_dict(
        {**shared, "CDM.weight": rows.permute(0, 1, 4, 2, 3).contiguous(), "CDM.bias": state["head.bias"]}
    )
    return tuned


@dataclass(frozen=True)
class _Tuned:
    """A student, what is told of it, and its logits (n, C) on the first images (n, 3, S, S)."""

    student: Student
    facts: Mapping[str, Any]
    pixels: Tensor
    logits: Tensor


def _tuned(
    network: nn.Module,
    form: Form,
    window: Preprocessing,
    output: Path,
    asked: Asked,
    identity: Identity,
    step: Step,
) -> _Tuned:
    """Tune a student of the network, and compare it with its teacher."""
    device = _device(asked.device)
    synthetic, real = images_in(asked.images, window), asked.real(window)
    student = student_from_float(network, form, asked.bits, synthetic.pixels if asked.equalize else None)
    logs = finetune(
        student.to(device),
        network.to(device),
        synthetic,
        asked.schedule,
        real=real,
        state=state_of(output),
        identity=identity.text,
        epoch_end=lambda logs: write_log(logs, log_of(output)),
        progress=step("fine-tune"),
    )
    student.cpu()
    network.cpu()
    pixels = synthetic.pixels[:MEASURED]
    logits = measure(student, pixels)
    with torch.no_grad():
        expected = torch.cat([logits_of(network, some) for some in pixels.split(32)])
    answers = expected.argmax(1)
    labels = answers if synthetic.labels is None else synthetic.labels[:MEASURED]
    facts = {
        "labels": "recorded" if synthetic.labels is not None else "predicted by the teacher",
        "label_agreement": float((labels == answers).double().mean()),
        "images": len(synthetic.pixels),
        "agreement": float((logits.argmax(1) == answers).double().mean()),
        "epochs": [asdict(log) for log in logs],
    }
    return _Tuned(student, facts, pixels, logits)


def _deployed(tuned: _Tuned, artifact: Artifact, asked: Asked) -> Finetuned:
    """Q/DQ where the student has it, put into the float graph that stands beside its checkpoint."""
    output, quantized = artifact.path, quantized_of(artifact.path)
    ranges = tuned.student.ranges(read_onnx(float_of(output)), tuned.facts["images"])
    range_files.save(ranges, quantization.ranges_of(quantized))
    made = quantization.int8_from_ranges(
        float_of(output), quantization.ranges_of(quantized), quantized, keep_float=asked.keep_float
    )
    deviation = _deviation(quantized, tuned.pixels[:COMPARED], tuned.logits[:COMPARED])
    state_of(output).unlink(missing_ok=True)
    return Finetuned(Made(artifact, False), made, deviation)


def _deviation(graph: Path, pixels: Tensor, logits: Tensor) -> float:
    """Largest difference of the graph's logits in ONNX Runtime from the student's, over the student's largest.

    The file as it stands computes what the student does. ONNX Runtime (1.32, WeightBiasQuantization) rounds biases of
    convolutions to whole products of both scales, coarse at few bits: so this is a figure of that runtime, no bound.
    """
    with open_engine(graph) as session:
        found = session.run({"image": pixels.numpy()})["logits"]
    return float(np.abs(found - logits.numpy()).max() / logits.abs().max())


def _require_another(output: Path, teacher: Mapping[str, Path]) -> None:
    if output.resolve() in {path.resolve() for path in teacher.values()}:
        raise UsageError(f"{output} is the teacher, which the result must not replace: choose another output path.")


def _save(guide: NamedGuide, state: dict[str, Tensor], output: Path) -> None:
    """The tuned parameters, and the guide's card where it has one."""
    if guide.card:
        tuned = copy.deepcopy(guide.network)
        tuned.load_state_dict(state)
        checkpoint.save(tuned, guide.card, output)
        return
    with writing(output) as temporary:
        save_file(state, temporary)


def _device(name: str) -> torch.device:
    if not chosen("--device", name, DEVICES)():
        raise UsageError(f"--device {name} needs an NVIDIA GPU and a CUDA build of torch, and there is none: use cpu.")
    return torch.device(name)
