"""The look for what float16 cannot hold: a checkpoint's weights, and what its graph computes on calibration images.

The numbers are those of the float32 graph, where nothing is lost yet, under the names of the float16 graph's nodes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from calib.float16 import LARGEST, Magnitudes, magnitudes_of, merged
from engines.registry import open_engine
from exporters.files import read_onnx, write_onnx
from exporters.half import half_values
from exporters.qdq import observer_from_float
from exporters.torch_export import INPUT
from toolchain.calibration import Floats
from toolchain.errors import DataError, ModelError
from toolchain.progress import Progress, silent


@dataclass(frozen=True)
class Held:
    """How float16 holds one weight, or what one node computes.

    Attributes:
        name: of the parameter in the checkpoint, or of the ONNX node.
        amax: largest |x|; float16 ends at 65504.
        subnormal: share of the values other than 0 under 2^-14, where float16 loses precision.
        vanishing: share of them under 2^-24, of which nothing is left.
    """

    name: str
    amax: float
    subnormal: float
    vanishing: float


@dataclass(frozen=True)
class Float16:
    """How float16 holds a localizer.

    Attributes:
        weights: by parameter.
        activations: by ONNX node, in graph order; empty where no images were looked at.
        images: how many were.
    """

    weights: tuple[Held, ...]
    activations: tuple[Held, ...] = ()
    images: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def float16_from_weights(model: nn.Module) -> Float16:
    """How float16 holds each parameter of a model in float32.

    Raises:
        ModelError: a parameter overflows.
    """
    named = {name: magnitudes_of(value.detach().cpu().numpy()) for name, value in model.named_parameters()}
    return Float16(_held(named, "Weight '{name}' holds {amax:g}"))


def with_activations(
    found: Float16, single: Path, half: Path, batches: Iterable[Floats], *, total: int = 0, progress: Progress = silent
) -> Float16:
    """The same with what each node of a float16 graph computes in it.

    One image is run at a time, and nothing but counts outlives it.

    Args:
        found: of the weights.
        single: ONNX file of the model in float32; the observer is written beside it.
        half: ONNX file of the same model in float16.
        batches: (B, 3, S, S) normalized images each; consumed once.
        total: images to come, for the progress; 0 where unknown.
        progress: called after each image.

    Raises:
        DataError: no image came.
        ModelError: a node overflows; names the first one in graph order.
    """
    graph = read_onnx(single)
    values = half_values(graph, read_onnx(half))
    tensors = dict.fromkeys(value.tensor for value in values)
    observer = single.with_name("observer.onnx")
    write_onnx(observer_from_float(graph, [*tensors]), observer)
    seen: dict[str, Magnitudes] = {}
    images = 0
    with open_engine(observer) as session:
        for image in (batch[k : k + 1] for batch in batches for k in range(len(batch))):
            computed = {INPUT: image, **session.run({INPUT: image})}
            for tensor in tensors:
                # Popped: nothing of an image is alive when the next one runs.
                magnitudes = magnitudes_of(computed.pop(tensor))
                seen[tensor] = merged(seen[tensor], magnitudes) if tensor in seen else magnitudes
            images += 1
            progress(images, max(total, images), f"{len(tensors)} tensors")
    if not images:
        raise DataError("No calibration image came: name a folder that holds some.")
    activations = _held({value.node: seen[value.tensor] for value in values}, "Node '{name}' reaches {amax:g}")
    return replace(found, activations=activations, images=images)


def _held(named: Mapping[str, Magnitudes], problem: str) -> tuple[Held, ...]:
    beyond = [name for name, found in named.items() if found.overflows]
    if beyond:
        first = problem.format(name=beyond[0], amax=named[beyond[0]].amax)
        more = f" ({len(beyond) - 1} more are beyond that)" if len(beyond) > 1 else ""
        raise ModelError(f"{first}, and float16 ends at {LARGEST:.0f}{more}: export with --precision fp32.")
    return tuple(Held(n, found.amax, found.subnormal_share, found.vanishing_share) for n, found in named.items())
