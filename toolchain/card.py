"""What must travel with a localizer from checkpoint to engine, so that an engine can be used without the checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from toolchain.boxes import PROTOCOL
from toolchain.errors import ModelError
from toolchain.preprocessing import Preprocessing

KEYS = ("preset", "class_names", "preprocessing", "tau", "protocol")
BACKBONE = "backbone"
"""What a backbone's card says it is, and the kind of the artifact."""
GUIDE = "guide"
"""The same of a guide."""


@dataclass(frozen=True)
class ModelCard:
    """Attributes that every form of a localizer carries in its metadata.

    Attributes:
        preset: name of the architecture.
        class_names: by class index.
        preprocessing: from an image file to the network's input.
        tau: box threshold, chosen on validation images.
        protocol: the evaluation protocol tau was chosen for.
    """

    preset: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    tau: float
    protocol: str = PROTOCOL

    def to_metadata(self) -> dict[str, str]:
        """As strings, which is all that safetensors and ONNX metadata hold."""
        return {
            "preset": self.preset,
            **_of_images(self.class_names, self.preprocessing),
            "tau": repr(self.tau),
            "protocol": self.protocol,
        }


@dataclass(frozen=True)
class BackboneCard:
    """What weights carry that a localizer can be trained on, and that are none.

    Attributes:
        preset: name of the architecture.
        origin: where the weights are from, in words.
    """

    preset: str
    origin: str

    def to_metadata(self) -> dict[str, str]:
        """As strings; a localizer's card has no key `kind`."""
        return {"kind": BACKBONE, "preset": self.preset, "origin": self.origin}


@dataclass(frozen=True)
class GuideCard:
    """What a guide carries: a BatchNorm network that generated images are aligned with, and no localizer.

    Attributes:
        preset: name of the architecture.
        class_names: by class index.
        preprocessing: from an image file to the network's input.
    """

    preset: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing

    def to_metadata(self) -> dict[str, str]:
        """As strings; a localizer's card has no key `kind`."""
        return {"kind": GUIDE, "preset": self.preset, **_of_images(self.class_names, self.preprocessing)}


def card_from_metadata(metadata: Mapping[str, str], source: str) -> ModelCard:
    """The card of a localizer in a file's metadata.

    Args:
        metadata: what the file carries; other keys are ignored.
        source: file name, for the message.

    Raises:
        ModelError: a backbone's card, or a key is missing or unreadable.
    """
    try:
        if metadata.get("kind") == BACKBONE:
            raise ModelError(
                f"{source} is a backbone without a localizer ({metadata['origin']}): train one on it with "
                f"`lctr train --preset {metadata['preset']} --init {source}`."
            )
        if metadata.get("kind") == GUIDE:
            raise ModelError(f"{source} is a guide and no localizer: give it to `lctr synthesize --guide`.")
        return ModelCard(
            preset=metadata["preset"],
            class_names=tuple(json.loads(metadata["class_names"])),
            preprocessing=_preprocessing(metadata),
            tau=float(metadata["tau"]),
            protocol=metadata["protocol"],
        )
    except KeyError as error:
        raise ModelError(
            f"{source} does not say its {error.args[0]}: it was not made by lctr; use a model of `lctr train`."
        ) from error
    except (ValueError, TypeError) as error:
        raise ModelError(f"the metadata of {source} is unreadable ({error}): make the file again.") from error


def guide_card_from_metadata(metadata: Mapping[str, str], source: str) -> GuideCard:
    """The card of a guide in a file's metadata.

    Args:
        metadata: what the file carries.
        source: file name, for the message.

    Raises:
        ModelError: of anything else, or a key is missing or unreadable.
    """
    if metadata.get("kind") != GUIDE:
        raise ModelError(f"{source} is no guide: make one with `lctr train --guide`, or name a package.module:factory.")
    try:
        names = tuple(json.loads(metadata["class_names"]))
        return GuideCard(metadata["preset"], names, _preprocessing(metadata))
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"the metadata of {source} is unreadable ({error}): make the file again.") from error


def _of_images(class_names: tuple[str, ...], window: Preprocessing) -> dict[str, str]:
    preprocessing = {
        "image_size": window.image_size,
        "resize": window.resize,
        "mean": list(window.mean),
        "std": list(window.std),
    }
    return {"class_names": json.dumps(list(class_names)), "preprocessing": json.dumps(preprocessing)}


def _preprocessing(metadata: Mapping[str, str]) -> Preprocessing:
    window = json.loads(metadata["preprocessing"])
    return Preprocessing(window["image_size"], window["resize"], tuple(window["mean"]), tuple(window["std"]))
