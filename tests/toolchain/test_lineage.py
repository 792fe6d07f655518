from pathlib import Path

import pytest

from toolchain.artifacts import seal, sidecar_of
from toolchain.errors import ArtifactError
from toolchain.lineage import verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`a` was made from a file elsewhere, `b` from `a`."""
    elsewhere = tmp_path / "elsewhere.bin"
    elsewhere.write_bytes(b"0")
    made = tmp_path / "made"
    made.mkdir()
    for name, parent in (("a", elsewhere), ("b", made / "a")):
        (made / name).write_bytes(name.encode())
        seal(made / name, "thing", inputs={"source": parent})
    return made


def test_lineage_is_resolved_among_neighbours(folder: Path) -> None:
    a, b = verify(folder)
    assert (a.path.name, a.problem, a.parents[0].path) == ("a", "", None)
    assert (b.path.name, b.problem, b.parents[0].path) == ("b", "", folder / "a")
    assert verify(folder / "b") == (b,)


def test_a_changed_file_is_found_and_the_others_are_whole(folder: Path) -> None:
    (folder / "a").write_bytes(b"changed")
    a, b = verify(folder)
    assert "sha256 differs" in a.problem
    assert b.problem == ""


def test_a_missing_file_and_a_broken_sidecar_are_found(folder: Path) -> None:
    (folder / "a").unlink()
    sidecar_of(folder / "b").write_text("{")
    problems = {checked.path.name: checked.problem for checked in verify(folder)}
    assert "does not exist" in problems["a"]
    assert "is no sidecar of ours" in problems["b"]


def test_nothing_to_verify_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no artifact"):
        verify(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        verify(tmp_path / "none")
