"""Guides: BatchNorm networks that generated images are aligned with, ours from a file and anybody's by a factory.

`package.module:factory` names something that is called without arguments and returns an `nn.Module`. Naming it runs
its code, with everything that its module does when it is imported.
"""

import hashlib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from calib.observation import frozen
from calib.teacher import Teacher
from toolchain.errors import ModelError, UsageError

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


def check_classifier(teacher: Teacher, spec: str) -> None:
    """Refuse a network that does not classify images of the stated size into the stated classes.

    Raises:
        ModelError: it does not.
    """
    size = teacher.image_size
    try:
        with frozen(teacher.model), torch.inference_mode():
            logits = teacher.logits(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, TypeError, AssertionError, StopIteration) as error:
        raise ModelError(
            f"--guide {spec} does not take images of {size} x {size} pixels ({_words(error)}): check --image-size."
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise ModelError(f"--guide {spec} returns {found}, not logits (batch, classes): wrap it in a module that does.")
    if logits.shape[1] != teacher.num_classes:
        raise ModelError(f"--guide {spec} has {logits.shape[1]} classes, not {teacher.num_classes}: check this number.")


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
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
