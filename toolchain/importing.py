"""A checkpoint that others wrote becomes a localizer of ours, or a backbone to train one on."""

from pathlib import Path

from toolchain.artifacts import Artifact, code_version, reusable, seal
from toolchain.card import BACKBONE, BackboneCard, ModelCard
from toolchain.errors import UsageError
from toolchain.model import checkpoint
from toolchain.model.foreign import Foreign, foreign_from_pth
from toolchain.model.lctr import Lctr
from toolchain.preprocessing import imagenet

RELEASED_TAUS = {200: 0.09, 1000: 0.18}
"""Box threshold by number of classes: CUB-200-2011's, ILSVRC's (spec/lctr.md, "Localization map and box")."""


def imported(
    path: Path, output: Path, *, class_names: Path | None = None, tau: float | None = None
) -> tuple[Artifact, bool]:
    """Write the weights of `path` to `output` as safetensors, with their card.

    Args:
        path: a `.pth` file of LCTR's release, DeiT, TS-CAM or a vision transformer without a head.
        output: a localizer if the checkpoint is one, else a backbone.
        class_names: text file, one name a line, by class index; without it `class 0`, `class 1`, ...
        tau: box threshold; without it the release's for that number of classes.

    Returns:
        the artifact, and whether it was already there. Its metadata says what was found (`found`, `classes`, `preset`),
        what was taken (`tensors`, `parameters`, `converted`), what was not (`left_out`), and what a localizer still
        needs (`missing`).

    Raises:
        ArtifactError, ModelError: the checkpoint cannot be used.
        UsageError: class names or tau that do not go with it.
    """
    parameters = {"tau": tau}
    inputs = {"checkpoint": path} | ({"class_names": class_names} if class_names else {})
    code = code_version("toolchain/importing.py", "toolchain/model", "toolchain/card.py")
    for kind in (checkpoint.KIND, BACKBONE):
        if found := reusable(output, kind, parameters=parameters, inputs=inputs, code=code):
            return found, True
    foreign = foreign_from_pth(path)
    facts = _facts(foreign)
    if isinstance(foreign.model, Lctr):
        card = _card(foreign.model, class_names, tau)
        kind, facts = checkpoint.KIND, {**facts, "tau": card.tau, "protocol": card.protocol}
        checkpoint.save(foreign.model, card, output)
    else:
        if class_names or tau is not None:
            raise UsageError(f"{path} is a backbone without a localizer: leave --class-names and --tau out.")
        kind = BACKBONE
        checkpoint.save(foreign.model, BackboneCard(foreign.model.preset.name, f"{foreign.kind}, {path.name}"), output)
    return seal(output, kind, parameters=parameters, inputs=inputs, metadata=facts, code=code), False


def _facts(foreign: Foreign) -> dict[str, object]:
    weights = foreign.model.state_dict()
    return {
        "found": foreign.kind,
        "classes": foreign.classes,
        "preset": foreign.model.preset.name,
        "tensors": len(weights),
        "parameters": sum(value.numel() for value in weights.values()),
        "converted": list(foreign.converted),
        "left_out": list(foreign.left_out),
        "missing": [] if isinstance(foreign.model, Lctr) else [f"{part}*" for part in checkpoint.HEAD],
    }


def _card(model: Lctr, class_names: Path | None, tau: float | None) -> ModelCard:
    classes = model.num_classes
    if tau is None and classes not in RELEASED_TAUS:
        raise UsageError(f"--tau is needed: a box threshold was published for 200 and 1000 classes, not for {classes}.")
    if tau is not None and not 0 < tau < 1:
        raise UsageError(f"--tau {tau:g} is no share of a map's maximum: give a number between 0 and 1.")
    names = _names(class_names, classes) if class_names else tuple(f"class {index}" for index in range(classes))
    window = imagenet(model.preset.image_size)
    return ModelCard(model.preset.name, names, window, RELEASED_TAUS[classes] if tau is None else tau)


def _names(path: Path, classes: int) -> tuple[str, ...]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--class-names {path} cannot be read as UTF-8 text ({error}): name another file.") from error
    names = tuple(line.strip() for line in text.rstrip().split("\n"))
    if len(names) != classes:
        raise UsageError(
            f"--class-names {path} has {len(names)} lines and the model {classes} classes: give one name a line."
        )
    if "" in names:
        raise UsageError(f"--class-names {path} has no name in line {names.index('') + 1}: give one name a line.")
    return names
