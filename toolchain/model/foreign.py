"""Checkpoints that others wrote, told apart by names and shapes (spec/lctr.md, "Checkpoints people have")."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from toolchain.errors import ModelError
from toolchain.model.backbone import VisionTransformer
from toolchain.model.checkpoint import HEAD, difference
from toolchain.model.lctr import Lctr
from toolchain.model.pickles import content_of
from toolchain.model.presets import PRESETS, Preset

LCTR, DEIT, TS_CAM, HEADLESS = "LCTR", "DeiT", "TS-CAM", "vision transformer"
WRAPPERS = ("model", "state_dict")
"""Where weights are looked for before they are taken to be at the top."""
PARALLEL = "module."
"""What DataParallel puts before every name."""
CLASSIFIER = "head."
"""Parameters of a classifier that LCTR does without."""


@dataclass(frozen=True)
class Foreign:
    """What somebody else's checkpoint holds.

    Attributes:
        kind: `LCTR`, `DeiT` (linear head), `TS-CAM` (convolutional head) or `vision transformer` (no head).
        classes: C of its classifier; None where it has none.
        model: its weights in float32; an `Lctr` if that is the kind, else the backbone alone.
        left_out: names of what was not taken, weights first.
        converted: types that weights had instead of float32.
    """

    kind: str
    classes: int | None
    model: VisionTransformer
    left_out: tuple[str, ...]
    converted: tuple[str, ...]


def foreign_from_pth(path: Path) -> Foreign:
    """Read and recognize a checkpoint of torch.save.

    Raises:
        ArtifactError, ModelError: as `content_of` does.
        ModelError: no kind that is known, sizes that no preset has, or weights that are missing, of another shape or
            none at all.
    """
    entries, beside = _entries(content_of(path), path)
    kind = _kind(entries)
    preset = _fitting_preset(entries, path)
    classes = _classes(kind, entries, path)
    unused = tuple(name for name in entries if name.startswith(CLASSIFIER))
    stored = {name: _checked(name, value, path) for name, value in entries.items() if name not in unused}
    model = Lctr(preset, classes) if kind == LCTR and classes else VisionTransformer(preset)
    weights = {name: value.float() for name, value in stored.items()}
    if problem := difference(model.state_dict(), weights):
        raise ModelError(
            f"{path} is no whole {kind} in the sizes of {preset.name}: {problem}; "
            f"use a whole checkpoint of an unchanged {kind}."
        )
    model.load_state_dict(weights)
    types = sorted({str(value.dtype).removeprefix("torch.") for value in stored.values()} - {"float32"})
    return Foreign(kind, classes, model.eval(), unused + beside, tuple(types))


def _entries(content: object, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights by name, without the prefix of DataParallel, and the names of what lies beside them."""
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds an object of type {type(content).__name__}, not weights by name.")
    wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)
    entries = content[wrapper] if wrapper else content
    for name, value in entries.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise ModelError(
                f"{name!r} in {path} is of type {type(value).__name__}, where only weights by name belong: lctr looks "
                f"for them under {' and '.join(repr(key) for key in WRAPPERS)}, then at the top."
            )
    if all(name.startswith(PARALLEL) for name in entries):
        entries = {name.removeprefix(PARALLEL): value for name, value in entries.items()}
    return entries, tuple(str(key) for key in content if key != wrapper) if wrapper else ()


def _kind(entries: Mapping[str, Tensor]) -> str:
    if any(name.startswith(HEAD) for name in entries):
        return LCTR
    head = entries.get("head.weight")
    return {2: DEIT, 4: TS_CAM}.get(head.ndim, HEADLESS) if head is not None else HEADLESS


def _classes(kind: str, entries: Mapping[str, Tensor], path: Path) -> int | None:
    if kind == LCTR:
        return int(_sized("CDM.weight", 5, entries, path).shape[1])
    return None if kind == HEADLESS else int(entries["head.weight"].shape[0])


def _checked(name: str, value: Tensor, path: Path) -> Tensor:
    plain = (
        value.layout == torch.strided
        and value.device.type == "cpu"
        and value.is_floating_point()
        # A file of a few bytes can claim any shape by repeating one number, and would be given the memory for it.
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )
    if not plain:
        raise ModelError(f"'{name}' in {path} is no dense tensor of floating-point numbers ({_described(value)}).")
    return value.detach()


def _described(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}, {tuple(value.shape)}"


def _fitting_preset(entries: Mapping[str, Tensor], path: Path) -> Preset:
    """The preset whose sizes the weights have.

    The number of heads leaves no trace in weights, where q, k and v of all heads are rows of one matrix: it is taken to
    be the preset's, which is DeiT's of that width.
    """
    has = {
        "width": _sized("cls_token", 3, entries, path).shape[2],
        "depth": len({name.split(".")[1] for name in entries if name.startswith("blocks.")}),
        "patch size": _sized("patch_embed.proj.weight", 4, entries, path).shape[3],
        "number of position embeddings": _sized("pos_embed", 3, entries, path).shape[1],
    }

    def misfits(preset: Preset) -> list[str]:
        needed = dict(zip(has, (preset.dim, preset.depth, preset.patch_size, 1 + preset.grid**2), strict=True))
        return [f"{what} {has[what]} instead of {size}" for what, size in needed.items() if has[what] != size]

    nearest = min(PRESETS.values(), key=lambda preset: len(misfits(preset)))
    if problems := misfits(nearest):
        raise ModelError(
            f"{path} has the sizes of no preset: {nearest.name} is the nearest, but there is {' and '.join(problems)}; "
            "import a model of DeiT's small or tiny shape."
        )
    return nearest


def _sized(name: str, dimensions: int, entries: Mapping[str, Tensor], path: Path) -> Tensor:
    value = entries.get(name)
    if value is None or value.ndim != dimensions:
        found = _described(value) if value is not None else ", ".join(list(entries)[:3]) or "nothing"
        raise ModelError(
            f"{path} is no whole LCTR, DeiT or TS-CAM: it has no '{name}' of {dimensions} dimensions, but {found}."
        )
    return value
