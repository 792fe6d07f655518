"""Checkpoints are read, and nothing in them is run."""

import os
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.serialization import get_safe_globals

from toolchain.errors import ArtifactError, LctrError, ModelError
from toolchain.model.pickles import content_of

Save = Callable[[Any, Path], None]


def zipped(value: Any, path: Path) -> None:
    torch.save(value, path)


def legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def pickled(protocol: int) -> Save:
    return lambda value, path: path.write_bytes(pickle.dumps(value, protocol))


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path, function: str) -> None:
        self.path, self.function = path, function

    def __reduce__(self) -> tuple[Any, ...]:
        return {
            "posix.system": (os.system, (f"touch '{self.path}'",)),
            "eval": (eval, (f"open({str(self.path)!r}, 'w')",)),
        }[self.function]


@pytest.mark.parametrize("function", ["posix.system", "eval"])
@pytest.mark.parametrize("save", [zipped, legacy, pickled(2)], ids=["zip", "legacy", "plain"])
def test_code_is_refused_by_name_and_not_run(save: Save, function: str, tmp_path: Path) -> None:
    witness, path = tmp_path / "witness", tmp_path / "evil.pth"
    save({"epoch": 1, "args": Touch(witness, function)}, path)
    with pytest.raises(ModelError, match=f"evil.pth was not read, for it holds '{function}' and reading that could"):
        content_of(path)
    assert not witness.exists()


def test_code_in_a_newer_protocol_is_not_run(tmp_path: Path) -> None:
    witness, path = tmp_path / "witness", tmp_path / "evil.pth"
    pickled(4)(Touch(witness, "posix.system"), path)
    with pytest.raises(ModelError, match=r"evil.pth was not read, for it holds instructions that weights do not need"):
        content_of(path)
    assert not witness.exists()
    # What the file would do to a reader that trusts it.
    pickle.loads(path.read_bytes())
    assert witness.exists()


def test_code_inside_a_namespace_is_not_run(tmp_path: Path) -> None:
    witness, path = tmp_path / "witness", tmp_path / "evil.pth"
    zipped({"args": Namespace(model=Touch(witness, "posix.system"))}, path)
    with pytest.raises(ModelError, match=r"holds 'posix\.system'"):
        content_of(path)
    assert not witness.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    zipped(torch.nn.Linear(1, 1), tmp_path / "network.pth")
    with pytest.raises(ModelError, match=r"holds 'torch.nn.modules.linear.Linear' .+ save model.state_dict\(\) alone"):
        content_of(tmp_path / "network.pth")


@pytest.mark.parametrize("save", [zipped, legacy], ids=["zip", "legacy"])
def test_a_namespace_is_forgotten_and_the_rest_comes_back(save: Save, tmp_path: Path) -> None:
    saved = {
        "a": torch.arange(6.0).reshape(2, 3).T,
        "args": Namespace(rate=5e-5, names=["x"]),
        "epoch": 79,
        "b": (None,),
    }
    save(saved, tmp_path / "c.pth")
    allowed = set(get_safe_globals())
    content = content_of(tmp_path / "c.pth")
    assert set(get_safe_globals()) == allowed
    assert isinstance(content, dict)
    assert torch.equal(content["a"], saved["a"])
    assert not isinstance(content["args"], Namespace)
    assert not vars(content["args"])
    assert (content["epoch"], content["b"]) == (79, (None,))


def write_text(path: Path) -> None:
    path.write_text("not a checkpoint")


def write_safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)


def write_archive(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, a=np.zeros(1))


def write_program(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"program/{name}", b"\x80\x02N.")


def write_changed(path: Path) -> None:
    torch.save({"a": torch.zeros(10_000)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "kind", "complaint"),
    [
        (lambda path: None, ArtifactError, "does not exist: check the path"),
        (Path.mkdir, ArtifactError, "is a folder: name the checkpoint in it"),
        (Path.touch, ArtifactError, "is empty: copy or download it again"),
        (write_text, ModelError, r"is no checkpoint of torch.save \(it begins with b'not a che'\): name a .pth file"),
        (write_safetensors, ModelError, r"is a safetensors file and needs no import: use it as it is, or .+ --init"),
        (write_archive, ModelError, r"is a zip archive without a data.pkl, no checkpoint of torch.save"),
        (write_program, ModelError, "is a TorchScript program, not weights"),
        (write_changed, ArtifactError, r"is damaged \('.+/data/0' does not match its checksum\): copy or download"),
        (lambda path: pickled(2)({"a": 1}, path), ArtifactError, "is no whole checkpoint of torch.save: copy or"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    write: Callable[[Path], None], kind: type[LctrError], complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.pth"
    write(path)
    with pytest.raises(kind, match=f"c.pth {complaint}"):
        content_of(path)


@pytest.fixture(scope="module", params=[zipped, legacy], ids=["zip", "legacy"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("small") / "c.pth"
    request.param({"model": {"a": torch.ones(3, 5), "b": torch.ones(2)}, "args": Namespace(x=1)}, path)
    return path, path.read_bytes()


def test_a_file_cut_anywhere_is_refused(small: tuple[Path, bytes]) -> None:
    path, content = small
    for end in range(1, len(content), len(content) // 40):
        path.write_bytes(content[:end])
        with pytest.raises(LctrError, match=r"c.pth "):
            content_of(path)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_never_surprises(small: tuple[Path, bytes], data: st.DataObject) -> None:
    path, content = small
    place = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(0, 255))
    path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
    with suppress(LctrError):
        content_of(path)
