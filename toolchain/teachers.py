"""Networks that generated images are made for: a localizer, or a guide in its place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from calib.alignment import Alignment, batchnorm_alignment, token_alignment
from calib.batchnorm import batchnorm_view, deep_layers
from calib.observation import View
from calib.statistics import Chooser, Statistics, well_separated
from calib.teacher import Teacher
from calib.tokens import attention_view, token_view
from toolchain import guides
from toolchain.artifacts import sha256_of
from toolchain.calibration import Stated
from toolchain.errors import ModelError, UsageError
from toolchain.model import checkpoint
from toolchain.model.lctr import Lctr
from toolchain.preprocessing import Preprocessing


@dataclass(frozen=True)
class KnownTeacher:
    """A teacher, and everything that is known of it.

    Attributes:
        name: what messages call it.
        teacher: the network.
        class_names: by class index.
        window: from an image file to the network's input.
        sha256: what statistics are bound to: the hash of its file, or of its weights where it has none.
        view: where statistics are taken.
        chosen: which layers keep class centers.
        aligned: statistics, or None, and whether BatchNorms are compared relatively -> what images are aligned with.
        attention: what attention made of each patch; None: the network is no transformer.
        inputs: files it was made from.
        parameters: what else decides what it is, for sidecars.
        statistics: where its statistics stand unless somebody put them elsewhere; None: nobody knows.
    """

    name: str
    teacher: Teacher
    class_names: tuple[str, ...]
    window: Preprocessing
    sha256: str
    view: View
    chosen: Chooser
    aligned: Callable[[Statistics | None, bool], Alignment | None]
    attention: View | None = None
    inputs: Mapping[str, Path] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    statistics: Path | None = None


def statistics_of(model: Path) -> Path:
    """Where the statistics of a model stand unless somebody put them elsewhere."""
    return model.with_name(f"{model.stem}.statistics.safetensors")


def teacher_named(
    model: Path | None, guide: str | None, stated: Stated, num_classes: int | None = None
) -> KnownTeacher:
    """The guide if there is one, the model otherwise.

    Args:
        model: a localizer; with a guide, the one that images are guided for.
        guide: as for `guide_teacher`.
        stated: what the images of a guide look like, where nothing else says so.
        num_classes: of a guide, likewise.

    Raises:
        UsageError: neither is named, or something is said twice or not at all.
        ArtifactError, ModelError: the network cannot be used.
    """
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"--num-classes {num_classes} cannot be: give at least 1.")
    if guide:
        return guide_teacher(guide, stated, num_classes=num_classes, model=model)
    if model is None:
        raise UsageError(f"no network is named: give MODEL, or --guide {guides.FORMS}.")
    if stated.parameters or num_classes is not None:
        raise UsageError(f"{model} says itself what its images and classes are: leave the options of a guide out.")
    return localizer_teacher(model)


def localizer_teacher(model: Path) -> KnownTeacher:
    """A localizer: token statistics at its LayerNorms (spec/fdda.md, route 2).

    Raises:
        ArtifactError, ModelError: the checkpoint cannot be used.
    """
    network, card = checkpoint.load(model)
    depth, heads = network.preset.depth, network.preset.heads
    view = token_view(layer_norm_inputs(network))
    teacher = _teacher(network, card.class_names, card.preprocessing, class_logits)

    def aligned(statistics: Statistics | None, relative: bool) -> Alignment | None:
        # Always relative: nothing was published for LayerNorms.
        return token_alignment(view, statistics, teacher.device) if statistics else None

    return KnownTeacher(
        name=str(model),
        teacher=teacher,
        class_names=card.class_names,
        window=card.preprocessing,
        sha256=sha256_of(model),
        view=view,
        chosen=well_separated,
        aligned=aligned,
        attention=attention_view([f"blocks.{block}.attn.proj" for block in range(depth)], heads),
        inputs={"model": model},
        statistics=statistics_of(model),
    )


def guide_teacher(
    spec: str, stated: Stated, *, num_classes: int | None = None, model: Path | None = None
) -> KnownTeacher:
    """A guide: statistics at its BatchNorms, as published (spec/fdda.md, route 1).

    Args:
        spec: `FILE.safetensors` of `lctr train --guide`, or `package.module:factory`.
        stated: what its images look like, where neither it nor `model` says so.
        num_classes: of a factory's network, whose classes are numbered; None: they are those of `model`.
        model: the localizer that images are guided for; its classes and its images are the guide's.

    Raises:
        UsageError: something is said twice or not at all, or there is no such guide.
        ArtifactError, ModelError: the guide cannot be used, or is not of the model's classes or images.
    """
    card = checkpoint.card_of(model) if model else None
    if not guides.is_factory(spec):
        guide = guides.guide_from_file(Path(spec), stated, num_classes)
        if card and (card.class_names, card.preprocessing) != (guide.class_names, guide.window):
            raise ModelError(
                f"{spec} is of other classes or images than {model}: train a guide for it with `lctr train --guide`."
            )
        return replace(_known(spec, guide, guide.class_names), statistics=statistics_of(Path(spec)))
    if card:
        if stated.parameters or num_classes is not None:
            raise UsageError(f"{model} says itself how its images are prepared: leave the guide's options out.")
        guide = guides.guide_from_factory(spec, card.preprocessing, len(card.class_names))
        return _known(spec, guide, card.class_names)
    window = guides.window_from_stated(spec, stated)
    if num_classes is None:
        raise UsageError(f"--guide {spec} does not say how many classes it has: give --num-classes.")
    guide = guides.guide_from_factory(spec, window, num_classes)
    return _known(spec, guide, guide.class_names)


def layer_norm_inputs(model: Lctr) -> list[str]:
    """Names of the LayerNorms of a localizer: their inputs are the residual stream."""
    inside = [f"blocks.{block}.{norm}" for block in range(model.preset.depth) for norm in ("norm1", "norm2")]
    return [*inside, "norm"]


def class_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """A localizer's logits without the map: a generator needs no gradient of the attention maps' product."""
    localizer = cast(Lctr, model)
    return localizer.classify(localizer.cues(images)).logits


def _known(spec: str, guide: guides.NamedGuide, class_names: tuple[str, ...]) -> KnownTeacher:
    network = guide.network
    view = batchnorm_view(network)
    return KnownTeacher(
        name=spec,
        teacher=_teacher(network, class_names, guide.window),
        class_names=class_names,
        window=guide.window,
        sha256=guide.sha256,
        view=view,
        chosen=lambda separation: deep_layers(view.layers),
        aligned=lambda statistics, relative: batchnorm_alignment(network, statistics, relative=relative),
        inputs=guide.inputs,
        parameters=guide.parameters,
    )


def _teacher(network: nn.Module, class_names: tuple[str, ...], window: Preprocessing, *how: Any) -> Teacher:
    return Teacher(network, len(class_names), window.image_size, window.mean, window.std, *how)
