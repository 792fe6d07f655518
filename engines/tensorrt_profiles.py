"""The optimization profile of a model: which shapes each of its dynamic inputs may have."""

from collections.abc import Mapping
from pathlib import Path

from engines.backend import BatchProfile, BuildOptions, ShapeProfile, shape_text
from toolchain.errors import UsageError

DYNAMIC = -1


def profiles_of(inputs: Mapping[str, tuple[int, ...]], model: Path, options: BuildOptions) -> dict[str, ShapeProfile]:
    """Dynamic input -> its shapes; empty where every size is fixed.

    Args:
        inputs: of the network, by name, -1 where dynamic.
        model: what the messages call it.
        options: whose `shapes`, or else `batch`, say which sizes there are.

    Raises:
        UsageError: a dynamic size is not stated, or what is stated is not the model's.
    """
    for name, profile in options.shapes.items():
        if name not in inputs:
            raise UsageError(f"{model} has no input '{name}': state the shapes of {', '.join(inputs)}.")
        _require_agreement(name, inputs[name], profile, model)
    return {
        name: options.shapes[name] if name in options.shapes else _batched(name, shape, model, options)
        for name, shape in inputs.items()
        if DYNAMIC in shape
    }


def _batched(name: str, shape: tuple[int, ...], model: Path, options: BuildOptions) -> ShapeProfile:
    if options.shapes or DYNAMIC in shape[1:]:
        raise UsageError(
            f"Input '{name}' of {model} is {list(shape)}, and no shape is stated for it: add it to --min-shapes, "
            "--opt-shapes and --max-shapes."
        )
    batch: BatchProfile = options.batch
    return ShapeProfile(*((size, *shape[1:]) for size in (batch.minimum, batch.optimum, batch.maximum)))


def _require_agreement(name: str, shape: tuple[int, ...], profile: ShapeProfile, model: Path) -> None:
    for stated in (profile.minimum, profile.optimum, profile.maximum):
        if len(stated) != len(shape) or any(
            own not in (DYNAMIC, size) for own, size in zip(shape, stated, strict=True)
        ):
            raise UsageError(
                f"Input '{name}' of {model} is {list(shape)}, which {shape_text(stated)} does not fit: keep the sizes "
                "that are not -1."
            )
