"""Anybody's network by the name of what makes it: `package.module:factory`.

It is called without arguments and returns an `nn.Module`. Naming it runs its code, with everything that its module does
when it is imported.
"""

import hashlib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from toolchain.calibration import Stated
from toolchain.errors import ModelError, UsageError
from toolchain.finetuning.student import logits_of
from toolchain.preprocessing import Preprocessing, imagenet


def network_from_factory(spec: str) -> nn.Module:
    """The network that `package.module:factory` makes; modules are found in the working folder, too.

    Raises:
        UsageError: no such module or function.
        ModelError: importing or calling it failed, or it made no `nn.Module`.
    """
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise UsageError(f"--guide {spec} names no network: give package.module:factory.")
    try:
        with _working_folder_importable():
            factory = getattr(importlib.import_module(name), attribute, None)
    except Exception as error:  # whatever somebody's code raises
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(f"--guide {spec}: there is no module '{error.name}': correct the name.") from error
        raise ModelError(f"--guide {spec} cannot be imported ({error or type(error).__name__}): repair it.") from error
    if not callable(factory):
        raise UsageError(f"--guide {spec}: module '{name}' has no function '{attribute}': name one that it has.")
    try:
        network = factory()
    except Exception as error:  # whatever somebody's code raises
        raise ModelError(f"--guide {spec} failed when it was called ({error or type(error).__name__}).") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"--guide {spec} made a {type(network).__name__}: return an nn.Module.")
    return network


def weights_sha256(network: nn.Module) -> str:
    """Hash of a network's weights and buffers: names, types, shapes and bytes, in name order."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def window_from_stated(stated: Stated) -> Preprocessing:
    """How the images of a guide are prepared.

    Raises:
        UsageError: something was not said, or cannot be.
    """
    if stated.mean is None or stated.std is None or stated.image_size is None:
        raise UsageError(
            "A guide does not say what its images are: give --image-size, --mean and --std, per channel of pixels in "
            "[0, 1], such as --image-size 224 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225."
        )
    if min(stated.std) <= 0 or stated.image_size < 1:
        raise UsageError(f"--image-size {stated.image_size} or --std {stated.std} cannot be: both are over 0.")
    return Preprocessing(stated.image_size, imagenet(stated.image_size).resize, stated.mean, stated.std)


def check_classifier(network: nn.Module, guide: str, size: int, num_classes: int | None) -> None:
    """Refuse a network that does not classify images of this size into so many classes (None: any number).

    Raises:
        ModelError: it does not.
    """
    try:
        with torch.no_grad():
            logits = logits_of(network, torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ModelError(
            f"--guide {guide} does not take images of {size} x {size} pixels ({error}): check --image-size."
        ) from error
    if logits.ndim != 2 or num_classes not in (None, logits.shape[1]):
        raise ModelError(
            f"--guide {guide} returns {tuple(logits.shape)} for an image, not logits of "
            f"{num_classes or 'all its'} classes: check --num-classes, or wrap it in a module that returns them."
        )


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    """As with `python -m`, and unlike with an installed command."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
