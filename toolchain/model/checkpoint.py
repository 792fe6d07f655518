"""Localizers, backbones and guides on disk: safetensors weights, the card in the metadata, and never a pickle."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from toolchain.artifacts import writing
from toolchain.card import BackboneCard, GuideCard, ModelCard, card_from_metadata, guide_card_from_metadata
from toolchain.errors import ArtifactError, ModelError
from toolchain.model.guide import Guide, guide_preset_named
from toolchain.model.lctr import Lctr
from toolchain.model.pickles import is_pickled
from toolchain.model.presets import preset_named

KIND = "model"
HEADER = "lctr"
"""The one key of the safetensors header: several would be written in another order each time."""
HEAD = ("conv3x3.", "CDM.")
"""Parameters that a bare backbone does not have."""
NAMED = 3
"""Weights that a message names before it counts the rest."""


def save(model: nn.Module, card: ModelCard | BackboneCard | GuideCard, path: Path) -> None:
    """Write weights and card, whole or not at all. The sidecar is the caller's: it knows where the weights are from."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with writing(path) as temporary:
        save_file(weights, temporary, metadata={HEADER: json.dumps(card.to_metadata(), sort_keys=True)})


def load(path: Path) -> tuple[Lctr, ModelCard]:
    """A localizer in eval mode, and its card.

    Raises:
        ArtifactError: no such file, or no whole safetensors file.
        ModelError: not a localizer of ours (a backbone, say), or weights that do not fit its preset.
    """
    card = card_of(path)
    weights = _weights(path)
    model = Lctr(preset_named(card.preset), len(card.class_names))
    problem = difference(model.state_dict(), weights)
    if problem:
        raise ModelError(f"{path} is not a whole {card.preset} of {len(card.class_names)} classes: {problem}.")
    model.load_state_dict(weights)
    return model.eval(), card


def load_guide(path: Path) -> tuple[Guide, GuideCard]:
    """A guide in eval mode, and its card.

    Raises:
        ArtifactError: no such file, or no whole safetensors file.
        ModelError: no guide of ours, or weights that do not fit its preset.
    """
    card = guide_card_from_metadata(_metadata(path) or {}, str(path))
    weights = _weights(path)
    model = Guide(guide_preset_named(card.preset), len(card.class_names))
    problem = difference(model.state_dict(), weights)
    if problem:
        raise ModelError(f"{path} is not a whole {card.preset} of {len(card.class_names)} classes: {problem}.")
    model.load_state_dict(weights)
    return model.eval(), card


def card_of(path: Path) -> ModelCard:
    """The card alone, without the weights.

    Raises:
        ArtifactError, ModelError: as `load` does.
    """
    metadata = _metadata(path)
    if metadata is None:
        raise ModelError(
            f"{path} has no card in its header: it was not made by lctr; use a model of `lctr train` or `lctr import`, "
            "or start from it with `lctr train --init`."
        )
    return card_from_metadata(metadata, str(path))


def load_start(model: Lctr, class_names: Sequence[str], path: Path) -> str:
    """Fill the backbone of `model` from a file that has one, and the head from a localizer of the same classes.

    Args:
        model: to fill.
        class_names: of `model`, by class index.
        path: a localizer or a backbone; without a card its classes are not known, and it counts as a backbone.

    Returns:
        what was taken, in words.

    Raises:
        ArtifactError: no such file, or no whole safetensors file.
        ModelError: a backbone of another shape, or an unreadable card.
    """
    weights = _weights(path)
    head = {name: value for name, value in weights.items() if name.startswith(HEAD)}
    backbone_weights = {name: value for name, value in weights.items() if name not in head}
    backbone = {name: value for name, value in model.state_dict().items() if not name.startswith(HEAD)}
    problem = difference(backbone, backbone_weights)
    if problem:
        raise ModelError(_misfit(path, model.preset.name, problem))
    model.load_state_dict(backbone_weights, strict=False)
    card = card_of(path) if head and _metadata(path) is not None else None
    if card is None or card.class_names != tuple(class_names):
        return "backbone"
    model.load_state_dict(head, strict=False)
    return "backbone and head"


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps `found` from standing in for `expected`, in words; empty if nothing does.

    Names first, both ways; where those agree, the first shape that differs or the first value that no weight can have.
    """
    absent, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    problems = [f"{_listed(absent)} {'is' if len(absent) == 1 else 'are'} missing"] if absent else []
    if extra:
        problems.append(f"{_listed(extra)} {'has' if len(extra) == 1 else 'have'} no place in it")
    if problems:
        return ", and ".join(problems)
    for name, value in sorted(found.items()):
        if value.shape != expected[name].shape:
            return f"'{name}' has shape {tuple(value.shape)}, not {tuple(expected[name].shape)}"
        if not torch.isfinite(value).all():
            return f"'{name}' holds NaN or infinity"
    return ""


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(f"'{name}'" for name in names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _misfit(path: Path, preset: str, problem: str) -> str:
    made_for = (_metadata(path) or {}).get("preset", preset)
    if made_for != preset:
        return f"{path} does not hold the backbone of {preset} but of {made_for}: use --preset {made_for}."
    return f"{path} does not hold the backbone of {preset}: {problem}; choose the preset it was made for."


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: check the path.")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        remedy = "make one of it with `lctr import`" if is_pickled(path) else "copy or make it again"
        raise ArtifactError(f"{path} is no whole safetensors file ({error}): {remedy}.") from error


def _metadata(path: Path) -> dict[str, str] | None:
    """What our one key of the header holds; None where it has none."""
    with _opened(path) as file:
        header = (file.metadata() or {}).get(HEADER)
    if header is None:
        return None
    try:
        return dict(json.loads(header))
    except (ValueError, TypeError) as error:
        raise ModelError(f"the card in the header of {path} is unreadable ({error}): make the file again.") from error


def _weights(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
