"""Networks that `--guide` names in the place of a localizer: ours from a file, anybody's by a factory.

`package.module:factory` names something that is called without arguments and returns an `nn.Module`. Naming it runs
its code, with everything that its module does when it is imported.
"""

import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from calib.observation import frozen
from calib.teacher import logits_of
from toolchain.artifacts import sha256_of
from toolchain.calibration import Stated
from toolchain.card import GuideCard
from toolchain.errors import ModelError, UsageError, first_line
from toolchain.model import checkpoint
from toolchain.preprocessing import Preprocessing, imagenet

FORMS = "FILE.safetensors or package.module:factory"


def is_factory(spec: str) -> bool:
    """Whether a guide is named by a factory.

    Raises:
        UsageError: it is named in no known form.
    """
    if spec.endswith(".safetensors"):
        return False
    module, _, attribute = spec.partition(":")
    if not module or not attribute:
        raise UsageError(f"--guide {spec} names no guide: give {FORMS}.")
    return True


@dataclass(frozen=True)
class NamedGuide:
    """A network that somebody named with `--guide`.

    Attributes:
        network: itself, in evaluation mode.
        window: from an image file to its input.
        class_names: by class index.
        sha256: hash of its file, or of its weights where it has none.
        card: what its file says; None: it is a factory's.
        inputs: files it was made from, for sidecars.
        parameters: what else decides what it is, for sidecars.
    """

    network: nn.Module
    window: Preprocessing
    class_names: tuple[str, ...]
    sha256: str
    card: GuideCard | None = None
    inputs: Mapping[str, Path] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


def guide_from_spec(spec: str, stated: Stated, num_classes: int | None = None) -> NamedGuide:
    """The guide that `--guide` names, a file's or a factory's.

    Args:
        spec: `FILE.safetensors` of `lctr train --guide`, or `package.module:factory`.
        stated: what the images of a factory's network are.
        num_classes: that it must have; None: whatever it has.

    Raises:
        UsageError: something is said twice or not at all, or there is no such guide.
        ArtifactError, ModelError: the guide cannot be used.
    """
    if is_factory(spec):
        return guide_from_factory(spec, window_from_stated(spec, stated), num_classes)
    return guide_from_file(Path(spec), stated, num_classes)


def guide_from_file(path: Path, stated: Stated, num_classes: int | None = None) -> NamedGuide:
    """A guide of ours.

    Raises:
        UsageError: what the file says was stated, too.
        ArtifactError, ModelError: it cannot be used.
    """
    network, card = checkpoint.load_guide(path)
    if stated.parameters or num_classes is not None:
        raise UsageError(f"{path} says itself what its images and classes are: leave these options out.")
    return NamedGuide(network, card.preprocessing, card.class_names, sha256_of(path), card, {"guide": path})


def guide_from_factory(spec: str, window: Preprocessing, num_classes: int | None = None) -> NamedGuide:
    """The network that `package.module:factory` makes; its classes have numbers for names.

    Args:
        spec: names the factory.
        window: from an image file to the network's input.
        num_classes: as for `guide_from_spec`.

    Raises:
        UsageError: there is no such factory.
        ModelError: it fails, or makes no classifier of such images into so many classes.
    """
    network = network_from_factory(spec).eval()
    classes = check_classifier(network, spec, window.image_size, num_classes)
    sha256 = weights_sha256(network)
    parameters = {"image_size": window.image_size, "mean": list(window.mean), "std": list(window.std)}
    named = tuple(f"class {index}" for index in range(classes))
    return NamedGuide(network, window, named, sha256, parameters={"guide": spec, "guide_sha256": sha256, **parameters})


def network_from_factory(spec: str) -> nn.Module:
    """The network that `package.module:factory` makes; modules are found in the working folder, too.

    Raises:
        UsageError: no such module or attribute, or it cannot be called.
        ModelError: importing or calling it failed, or it made no `nn.Module`.
    """
    name, _, attribute = spec.partition(":")
    module = _imported(spec, name)
    factory = getattr(module, attribute, None)
    if factory is None:
        raise UsageError(f"--guide {spec}: module '{name}' has no '{attribute}': name a function that it has.")
    if not callable(factory):
        raise UsageError(f"--guide {spec}: '{attribute}' is of type {type(factory).__name__}: name a function.")
    try:
        network = factory()
    except Exception as error:  # whatever somebody's code raises
        raise ModelError(f"--guide {spec} failed when it was called ({_words(error)}): repair it.") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"--guide {spec} made a {type(network).__name__}: return an nn.Module.")
    return network


def check_classifier(network: nn.Module, spec: str, image_size: int, num_classes: int | None) -> int:
    """How many classes a network tells apart in images of this size, in pixels.

    Raises:
        ModelError: it does not classify such images, or not into `num_classes` (None: any number).
    """
    try:
        with frozen(network), torch.inference_mode():
            images = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
            logits = logits_of(network, images)
    except (RuntimeError, ValueError, TypeError, AssertionError, StopIteration) as error:
        raise ModelError(
            f"--guide {spec} does not take images of {image_size} x {image_size} pixels ({_words(error)}): check "
            "--image-size."
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise ModelError(f"--guide {spec} returns {found}, not logits (batch, classes): wrap it in a module that does.")
    if num_classes not in (None, logits.shape[1]):
        raise ModelError(f"--guide {spec} has {logits.shape[1]} classes, not {num_classes}: check this number.")
    return logits.shape[1]


def window_from_stated(spec: str, stated: Stated) -> Preprocessing:
    """How the images of a factory's network are prepared: as for ImageNet, but for what was stated.

    Raises:
        UsageError: something was not said, or cannot be.
    """
    if stated.mean is None or stated.std is None or stated.image_size is None:
        raise UsageError(
            f"--guide {spec} does not say what its images are: give --image-size, --mean and --std, per channel of "
            "pixels in [0, 1], such as --image-size 224 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225."
        )
    if min(stated.std) <= 0 or stated.image_size < 1:
        raise UsageError(f"--image-size {stated.image_size} or --std {stated.std} cannot be: both are over 0.")
    return Preprocessing(stated.image_size, imagenet(stated.image_size).resize, stated.mean, stated.std)


def weights_sha256(network: nn.Module) -> str:
    """Hash of a network's weights and buffers: names, types, shapes and bytes, in name order."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _imported(spec: str, name: str) -> ModuleType:
    try:
        with _working_folder_importable():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"--guide {spec}: there is no module '{error.name}': give {FORMS}.") from error
        raise ModelError(f"--guide {spec} cannot be imported ({_words(error)}): install what it needs.") from error
    except Exception as error:  # whatever somebody's code raises
        raise ModelError(f"--guide {spec} cannot be imported ({_words(error)}): repair it.") from error


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    """As with `python -m`, and unlike with an installed command."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _words(error: Exception) -> str:
    said, kind = first_line(error), type(error).__name__
    return said if said == kind else f"{kind}: {said}"
