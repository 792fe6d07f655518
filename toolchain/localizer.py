"""A localizer opened from any of its forms: safetensors, ONNX or an engine, in the backend that is asked for."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.backend import Input, Session
from engines.registry import backend, open_engine
from engines.torch_runtime import FP16, TorchBackend
from toolchain.boxes import box_from_map
from toolchain.card import ModelCard, card_from_metadata
from toolchain.errors import ModelError, UsageError
from toolchain.evaluation import Classes, Floats, Predict, PredictClasses
from toolchain.preprocessing import Box

CHECKPOINTS = (".safetensors", ".pth")
"""What the model's own loader reads, or refuses with what to do instead."""
TORCH = "torch"
OUTPUTS = ("logits", "map")
"""Of the form that is deployed."""


@dataclass(frozen=True)
class Localizer:
    """An open localizer.

    Attributes:
        predict: normalized images (B, 3, S, S) -> logits (B, C) and fused maps (B, h, w) of the predicted classes.
        card: preprocessing, class names, tau.
        predict_classes: the same with the fused maps of given classes (B,); None: the file was exported without them.
    """

    predict: Predict
    card: ModelCard
    predict_classes: PredictClasses | None = None


@dataclass(frozen=True)
class Localization:
    """What is in an image, and where.

    Attributes:
        label: predicted class index.
        class_name: its name.
        confidence: softmax probability.
        box: x0, y0, x1, y1 in pixels of the image as it was given.
        map: (h, w), the fused map of the predicted class.
        window: the part of the image that the network saw, in the image's pixels; the map covers it.
        constant_map: the map told nothing; the box is the whole input.
    """

    label: int
    class_name: str
    confidence: float
    box: Box
    map: Floats
    window: Box
    constant_map: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; the map is left out."""
        return {
            "label": self.label,
            "class_name": self.class_name,
            "confidence": self.confidence,
            "box": list(self.box),
            "constant_map": self.constant_map,
        }


@contextmanager
def open_localizer(path: Path, backend_name: str | None = None) -> Iterator[Localizer]:
    """Open a checkpoint in torch, anything else in the backend that it is for, unless one is named.

    A checkpoint without a name is the model as it was trained, which knows the map of any class; with one, such as
    `torch:compile:cuda`, it is the form that is deployed.

    Raises:
        ArtifactError, ModelError, BackendError: the file cannot be used, or not here.
        UsageError: no such backend, or none for this file.
    """
    if path.suffix in CHECKPOINTS and backend_name is None:
        yield _from_checkpoint(path)
        return
    with open_session(path, backend_name) as session:
        yield localizer_from_session(session, str(path))


@contextmanager
def open_session(path: Path, backend_name: str | None = None, runtime_caches: Path | None = None) -> Iterator[Session]:
    """Open a file to be run and timed; a checkpoint runs in torch, in the form that is deployed.

    See `engines.registry.open_engine` for the arguments.

    Raises:
        ArtifactError, ModelError, BackendError: the file cannot be used, or not here.
        UsageError: no such backend, or none for this file.
    """
    if path.suffix in CHECKPOINTS:
        opened: AbstractContextManager[Session] = _deployed(path, backend_name or TORCH)
    else:
        opened = open_engine(path, backend_name, runtime_caches)
    with opened as session:
        yield session


def is_localizer(session: Session) -> bool:
    """Whether a model card travelled with the engine: anybody's model can be run and timed, ours alone localizes."""
    return "preprocessing" in session.metadata


def localizer_from_session(session: Session, source: str) -> Localizer:
    """A localizer from an open engine of either form, told apart by its outputs; `source` names it in messages.

    `logits, map` (`--maps top1`): the fused map (B, h, w) of the predicted class. `logits, maps, attention`
    (`--maps all`): `X_CDM` (B, C, h, w) and `M^r_*` (B, h, w), of which the fused map of any class is made.

    Raises:
        ModelError: outputs of neither form, or no card in the metadata.
    """
    card = card_from_metadata(session.metadata, source)
    if {"logits", "maps", "attention"} <= set(session.outputs):
        return _from_all_maps(session, card)
    if not set(OUTPUTS) <= set(session.outputs):
        raise ModelError(
            f"{source} has the outputs {', '.join(session.outputs)}, not those of a localizer (logits and map, or "
            "logits, maps and attention): use a file of `lctr export`, or one made of it."
        )

    def predict(images: Floats) -> tuple[Floats, Floats]:
        outputs = session.run({"image": images})
        return outputs["logits"], outputs["map"]

    return Localizer(predict, card)


def localize(localizer: Localizer, image: Image.Image) -> Localization:
    """Class and box of one image of any size."""
    window = localizer.card.preprocessing
    found = localize_crop(localizer, window.crop(image))
    box, seen = (window.uncrop_box(part, image.size) for part in (found.box, found.window))
    return replace(found, box=box, window=seen)


def localize_crop(localizer: Localizer, pixels: NDArray[np.uint8]) -> Localization:
    """Class and box of an image (S, S, 3) that was resized and cropped already."""
    card = localizer.card
    size = card.preprocessing.image_size
    logits, maps = localizer.predict(card.preprocessing.normalize(pixels[None]))
    label = int(logits[0].argmax())
    weights = np.exp(logits[0] - logits[0].max())
    found = box_from_map(maps[0], size, card.tau)
    return Localization(
        label=label,
        class_name=card.class_names[label],
        confidence=float(weights[label] / weights.sum()),
        box=found.box,
        map=maps[0],
        window=(0, 0, size, size),
        constant_map=found.constant,
    )


def _from_all_maps(session: Session, card: ModelCard) -> Localizer:
    def predict(images: Floats) -> tuple[Floats, Floats]:
        outputs = session.run({"image": images})
        return outputs["logits"], _fused(outputs, outputs["logits"].argmax(1))

    def predict_classes(images: Floats, classes: Classes) -> tuple[Floats, Floats]:
        outputs = session.run({"image": images})
        return outputs["logits"], _fused(outputs, classes)

    return Localizer(predict, card, predict_classes)


def _fused(outputs: Mapping[str, NDArray[Any]], classes: Classes) -> Floats:
    """`M_fuse = M^r_* x ReLU(X_CDM)` of a class of each image: (B, h, w)."""
    asked = outputs["maps"][np.arange(len(classes)), classes]
    return np.asarray(outputs["attention"] * np.maximum(asked, 0))


def _from_checkpoint(path: Path) -> Localizer:
    # Late: a deployment machine has no torch and opens no checkpoint.
    from toolchain.model import checkpoint
    from toolchain.model.prediction import class_predictor, predictor

    model, card = checkpoint.load(path)
    return Localizer(predictor(model), card, class_predictor(model))


@contextmanager
def _deployed(path: Path, backend_name: str) -> Iterator[Session]:
    """A checkpoint in torch: `DeployedLctr` in the backend's precision."""
    runtime = backend(backend_name)
    if not isinstance(runtime, TorchBackend):
        raise UsageError(f"{path} is a checkpoint, which '{runtime.name}' cannot run: use torch, or export it first.")
    runtime.require()
    # Late: a deployment machine has no torch and opens no checkpoint.
    import torch

    from toolchain.model import checkpoint
    from toolchain.model.deployment import DeployedLctr

    model, card = checkpoint.load(path)
    size = card.preprocessing.image_size
    images = Input("image", np.dtype(np.float32), ("batch", 3, size, size))
    precision = torch.float16 if runtime.precision == FP16 else torch.float32
    with runtime.session_from_module(
        DeployedLctr(model, precision=precision), [images], OUTPUTS, card.to_metadata(), f"{path}@{runtime.name}"
    ) as session:
        # The session alone holds the weights from here on.
        del model
        yield session
