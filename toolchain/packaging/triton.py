"""A model repository for Triton Inference Server.

Its `config.pbtxt` is protobuf text, written by a template: nothing here needs protobuf. Fields and their meaning are
those of `model_config.proto` (triton-inference-server/common) and of Triton's user guide, "Model Configuration".
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.backend import BatchProfile
from toolchain.errors import BackendError, UsageError, chosen
from toolchain.packaging.source import ONNXRUNTIME, TENSORRT, TENSORRT_RTX, Source, Tensor, tensors_of
from toolchain.packaging.texts import (
    filled,
    inference,
    paragraph,
    preprocessing_in_words,
    script,
    write_card,
    write_labels,
)

PLATFORMS = {TENSORRT: ("tensorrt_plan", "model.plan"), ONNXRUNTIME: ("onnxruntime_onnx", "model.onnx")}
"""Runtime -> Triton's platform, and the file name that it looks for."""
KINDS = {"gpu": "KIND_GPU", "cpu": "KIND_CPU"}
TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "float64": "TYPE_FP64"}
"""NumPy's names of what a localizer takes and returns."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
DELAY = re.compile(r"(\d+)(us|ms|s)")
MICROSECONDS = {"us": 1, "ms": 1000, "s": 1_000_000}
SUPPORT_MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html"


@dataclass(frozen=True)
class TritonOptions:
    """How Triton is to serve the model.

    Attributes:
        name: of the model; None: after the file.
        max_batch: largest batch; None: the largest that the engine was built for, 32 for ONNX.
        instances: copies of the model that run at a time.
        queue_delay: microseconds that a request waits for others to share its batch.
        device: `gpu` or `cpu`; None: `gpu` for TensorRT, `cpu` for ONNX.

    Raises:
        UsageError: a name that is no folder's, no instance, an unknown device, or a batch under 1.
    """

    name: str | None = None
    max_batch: int | None = None
    instances: int = 1
    queue_delay: int = 100
    device: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and not NAME.fullmatch(self.name):
            raise UsageError(f"--name {self.name!r} cannot name a folder: use letters, digits, '_', '-' and '.'.")
        for option, value in (("--max-batch", self.max_batch), ("--instances", self.instances)):
            if value is not None and value < 1:
                raise UsageError(f"{option} {value} serves nothing: give at least 1.")
        if self.device is not None:
            chosen("--device", self.device, KINDS)


def microseconds(text: str) -> int:
    """`100us`, `2ms` or `1s` as microseconds.

    Raises:
        UsageError: none of these.
    """
    if found := DELAY.fullmatch(text):
        return int(found[1]) * MICROSECONDS[found[2]]
    raise UsageError(f"--queue-delay {text} is no time: write it as 100us or 2ms.")


@dataclass(frozen=True)
class _Served:
    """What was decided: the options with every default filled in."""

    name: str
    platform: str
    file: str
    max_batch: int
    preferred: tuple[int, ...]
    instances: int
    queue_delay: int
    device: str


def write_triton(source: Source, options: TritonOptions, folder: Path) -> None:
    """Fill an empty folder: the model's own folder, a client, and how to use both.

    Raises:
        BackendError: a TensorRT-RTX engine, which Triton does not serve.
        UsageError: an option that the engine cannot honour.
        ArtifactError, ModelError: see `tensors_of`.
    """
    served = _decided(source, options)
    tensor, outputs = tensors_of(source)
    model = folder / served.name
    version = model / "1"
    version.mkdir(parents=True)
    source.copy_to(version / served.file)
    write_labels(source.card, model)
    (model / "config.pbtxt").write_text(_config(source, served, tensor, outputs), encoding="utf-8")
    write_card(source.card, folder)
    client = script("triton", f"{served.name}/labels.txt", model=served.name)
    (folder / "client.py").write_text(client, encoding="utf-8")
    (folder / "README.md").write_text(_readme(source, served), encoding="utf-8")


def _decided(source: Source, options: TritonOptions) -> _Served:
    if source.runtime == TENSORRT_RTX:
        raise BackendError(
            f"{source.path} is a TensorRT-RTX engine, which Triton does not serve: build it with --backend tensorrt, "
            "package the ONNX file, or take --format folder."
        )
    platform, file = PLATFORMS[source.runtime]
    device = options.device or ("gpu" if source.runtime == TENSORRT else "cpu")
    if source.runtime == TENSORRT and device == "cpu":
        raise UsageError(f"{source.path} is a TensorRT engine, which needs a GPU: leave --device cpu out.")
    built = source.batch
    batch = built or BatchProfile()
    largest = options.max_batch or batch.maximum
    if built and largest > built.maximum:
        raise UsageError(f"--max-batch {largest} is over the {built.maximum} that {source.path} was built for.")
    if built and built.minimum > 1:
        raise UsageError(
            f"{source.path} takes batches from {built.minimum} up, and Triton sends single requests too: build it with "
            f"--batch 1 {built.optimum} {built.maximum}."
        )
    preferred = tuple(sorted({min(batch.optimum, largest), largest}))
    name = options.name or re.sub(r"[^A-Za-z0-9_-]", "_", source.path.stem)
    return _Served(name, platform, file, largest, preferred, options.instances, options.queue_delay, device)


def _config(source: Source, served: _Served, tensor: Tensor, outputs: tuple[Tensor, ...]) -> str:
    return filled(
        "config.pbtxt",
        name=served.name,
        platform=served.platform,
        max_batch=served.max_batch,
        inputs=_block(tensor),
        outputs=",\n".join(_block(output, "labels.txt" if output.name == "logits" else "") for output in outputs),
        instances=served.instances,
        kind=KINDS[served.device],
        batching=_batching(served),
        parameters="\n".join(_parameter(key, value) for key, value in _parameters(source).items()),
    )


def _block(tensor: Tensor, labels: str = "") -> str:
    dims = ", ".join(map(str, tensor.dims))
    ending = f" label_filename: {_quoted(labels)}" if labels else ""
    type_ = TYPES[tensor.type]
    return f"  {{ name: {_quoted(tensor.name)} data_type: {type_} dims: [ {dims} ]{ending} }}"


def _batching(served: _Served) -> str:
    if served.max_batch == 1:
        return ""
    sizes = ", ".join(map(str, served.preferred))
    return (
        f"dynamic_batching {{\n  preferred_batch_size: [ {sizes} ]\n"
        f"  max_queue_delay_microseconds: {served.queue_delay}\n}}\n"
    )


def _parameters(source: Source) -> dict[str, Any]:
    """What a client must know, under names that no backend of Triton reads."""
    card = source.card
    window = card.preprocessing
    return {
        "lctr.image_size": window.image_size,
        "lctr.resize": window.resize,
        "lctr.mean": window.mean,
        "lctr.std": window.std,
        "lctr.tau": card.tau,
        "lctr.protocol": card.protocol,
    }


def _parameter(key: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(text)} }} }}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format, whose escapes include JSON's."""
    return json.dumps(text, ensure_ascii=False)


def _readme(source: Source, served: _Served) -> str:
    origin = "; what that was made from stands beside it, with hashes" if source.artifact else ""
    sizes = " and ".join(map(str, served.preferred))
    waits = f", preferably of {sizes}, for which a request waits {served.queue_delay} microseconds"
    copies = f"{served.instances} instance{'' if served.instances == 1 else 's'} on the {served.device.upper()}"
    return filled(
        "triton.md",
        name=served.name,
        contents=paragraph(
            f"`{served.name}/config.pbtxt` is what Triton reads, `{served.name}/labels.txt` names the "
            f"{len(source.card.class_names):,} classes, "
            f"`{served.name}/1/{served.file}` is `{source.path.name}`{origin}.",
        ),
        tag_note=_tag_note(source),
        gpus="--gpus=1 " if served.device == "gpu" else "",
        client="\n\n".join(inference("triton", model=served.name)),
        preprocessing=preprocessing_in_words(source.card),
        tau=f"{source.card.tau:g}",
        serving=paragraph(
            f"Batches up to {served.max_batch}{waits if served.max_batch > 1 else ''}; {copies}.",
            "To change that, package again with `--max-batch`, `--queue-delay`, `--instances` or `--device`.",
        ),
    )


def _tag_note(source: Source) -> str:
    matrix = f"NVIDIA lists the releases of the image and what is in each at {SUPPORT_MATRIX}."
    if source.runtime == ONNXRUNTIME:
        return paragraph("Any recent release of the image serves an ONNX file.", matrix)
    built = source.builder[1] if source.builder else ""
    gpu = source.artifact.machine.get("gpu", "none") if source.artifact else "none"
    return paragraph(
        f"A TensorRT engine runs in the TensorRT version that built it{f' ({built})' if built else ''}, on the kind of",
        f"GPU that it was built for{f' ({gpu})' if gpu != 'none' else ''}: take the release of the image with that "
        "version.",
        matrix,
    )
