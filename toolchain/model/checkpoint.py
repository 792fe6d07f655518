"""Localizers on disk: safetensors weights with the card in the metadata. No pickle is read or written."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from toolchain.artifacts import writing
from toolchain.card import ModelCard, card_from_metadata
from toolchain.errors import ArtifactError, ModelError
from toolchain.model.lctr import Lctr
from toolchain.model.presets import preset_named

KIND = "model"
HEADER = "lctr"
"""The one key of the safetensors header: several would be written in another order each time."""
HEAD = ("conv3x3.", "CDM.")
"""Parameters that a bare backbone does not have."""


def save(model: Lctr, card: ModelCard, path: Path) -> None:
    """Write weights and card, whole or not at all. The sidecar is the caller's: it knows where the weights are from."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with writing(path) as temporary:
        save_file(weights, temporary, metadata={HEADER: json.dumps(card.to_metadata(), sort_keys=True)})


def load(path: Path) -> tuple[Lctr, ModelCard]:
    """A localizer in eval mode, and its card.

    Raises:
        ArtifactError: no such file, or no whole safetensors file.
        ModelError: not a localizer of ours, or weights that do not fit its preset.
    """
    card = card_of(path)
    weights = _weights(path)
    model = Lctr(preset_named(card.preset), len(card.class_names))
    problem = _difference(model.state_dict(), weights)
    if problem:
        raise ModelError(f"{path} is not a whole {card.preset} of {len(card.class_names)} classes: {problem}.")
    model.load_state_dict(weights)
    return model.eval(), card


def card_of(path: Path) -> ModelCard:
    """The card alone, without the weights.

    Raises:
        ArtifactError, ModelError: as `load` does.
    """
    with _opened(path) as file:
        header = (file.metadata() or {}).get(HEADER)
    if header is None:
        raise ModelError(f"{path} has no card in its header: it was not made by lctr; use a model of `lctr train`.")
    try:
        metadata = dict(json.loads(header))
    except (ValueError, TypeError) as error:
        raise ModelError(f"the card in the header of {path} is unreadable ({error}): make the file again.") from error
    return card_from_metadata(metadata, str(path))


def load_start(model: Lctr, class_names: Sequence[str], path: Path) -> str:
    """Fill the backbone of `model` from a file that has one, and the head from a localizer of the same classes.

    Returns:
        what was taken, in words.

    Raises:
        ArtifactError: no such file, or no whole safetensors file.
        ModelError: a backbone of another shape.
    """
    weights = _weights(path)
    head = {name: value for name, value in weights.items() if name.startswith(HEAD)}
    backbone_weights = {name: value for name, value in weights.items() if name not in head}
    backbone = {name: value for name, value in model.state_dict().items() if not name.startswith(HEAD)}
    problem = _difference(backbone, backbone_weights)
    if problem:
        raise ModelError(
            f"{path} does not hold the backbone of {model.preset.name}: {problem}; choose the preset it was made for."
        )
    model.load_state_dict(backbone_weights, strict=False)
    if not head or card_of(path).class_names != tuple(class_names):
        return "backbone"
    model.load_state_dict(head, strict=False)
    return "backbone and head"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: check the path.")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is no whole safetensors file ({error}): copy or make it again.") from error


def _weights(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """The first difference in names, shapes or values that no weight can have; empty if there is none."""
    for name in sorted(expected.keys() - found.keys()):
        return f"'{name}' is missing"
    for name in sorted(found.keys() - expected.keys()):
        return f"'{name}' has no place in it"
    for name, value in sorted(found.items()):
        if value.shape != expected[name].shape:
            return f"'{name}' has shape {tuple(value.shape)}, not {tuple(expected[name].shape)}"
        if not torch.isfinite(value).all():
            return f"'{name}' holds NaN or infinity"
    return ""
