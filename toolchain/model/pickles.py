"""What a `.pth` file of torch.save holds, read without running anything in it."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch.serialization import safe_globals

from toolchain.errors import ArtifactError, LctrError, ModelError

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""How a file of torch.save begins: since version 1.6 of torch, and before."""
HEADER = b"{"
"""The byte after the first eight of a safetensors file, which are the length of its header."""


class _Forgotten:
    """Stands where a checkpoint has an object that is no weight: takes the object's parts, and keeps none."""

    def __new__(cls, *parts: object) -> "_Forgotten":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Forget it."""


def content_of(path: Path) -> object:
    """The object that was saved: dicts, lists, plain values and tensors on the CPU.

    Raises:
        ArtifactError: nothing there, or damaged.
        ModelError: no checkpoint of torch.save, or one that cannot be read without running code.
    """
    _check_beginning(path)
    try:
        if _beginning(path).startswith(ZIP):
            _check_archive(path)
        return _read(path)
    except LctrError:
        raise
    except pickle.UnpicklingError as error:
        # The message of torch advises to load the file all the same; only the name in it is of use.
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"'{named[1]}'" if named else "instructions that weights do not need"
        raise ModelError(
            f"{path} was not read, for it holds {what} and reading that could run code: "
            "have its maker save model.state_dict() alone."
        ) from error
    except Exception as error:
        # Bytes that somebody else made up can fail a parser in any way.
        raise ArtifactError(f"{path} is no whole checkpoint of torch.save: copy or download it again.") from error


def is_pickled(path: Path) -> bool:
    """Whether a file begins as those of torch.save do."""
    beginning = _beginning(path)
    return beginning.startswith((ZIP, PICKLE)) and beginning[8:] != HEADER


def _beginning(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(9)


def _check_beginning(path: Path) -> None:
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder: name the checkpoint in it.")
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: check the path.")
    if is_pickled(path):
        return
    beginning = _beginning(path)
    if not beginning:
        raise ArtifactError(f"{path} is empty: copy or download it again.")
    if beginning[8:] == HEADER:
        raise ModelError(
            f"{path} is a safetensors file and needs no import: use it as it is, or start from it with "
            f"`lctr train --init {path}`."
        )
    raise ModelError(f"{path} is no checkpoint of torch.save (it begins with {beginning!r}): name a .pth file.")


def _check_archive(path: Path) -> None:
    """Refuse what torch would take amiss: it verifies no checksum, and calls a program a wrong use of its options."""
    with zipfile.ZipFile(path) as archive:
        members = {name.rpartition("/")[2] for name in archive.namelist()}
        damaged = archive.testzip()
    if damaged:
        raise ArtifactError(f"{path} is damaged ({damaged!r} does not match its checksum): copy or download it again.")
    if "data.pkl" not in members:
        raise ModelError(f"{path} is a zip archive without a data.pkl, no checkpoint of torch.save: name a .pth file.")
    if "constants.pkl" in members:
        raise ModelError(f"{path} is a TorchScript program, not weights: have its maker save model.state_dict().")


def _read(path: Path) -> object:
    # DeiT's training script, and LCTR's after it, saves its argparse.Namespace beside the weights. torch builds an
    # object only of a class it was told of; told of this name, it gets our stand-in for it. So not even a Namespace is
    # made: what the file would put into it is dropped, and the only code that runs on it is the two methods above.
    forgotten = safe_globals([(_Forgotten, "argparse.Namespace")])
    with path.open("rb") as stream, warnings.catch_warnings(), forgotten:
        # Old formats are warned of, about which the user can do nothing.
        warnings.simplefilter("ignore")
        content: object = torch.load(stream, map_location="cpu", weights_only=True)
    return content
