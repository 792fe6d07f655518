import json
from pathlib import Path
from typing import Any

import pytest

from toolchain import artifacts
from toolchain.artifacts import load, read_sidecar, reusable, seal, sha256_of, sidecar_of, writing
from toolchain.errors import ArtifactError

# echo -n content | sha256sum
SHA256_OF_CONTENT = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    """What a stage passes to `seal` and to `reusable`: an output of one input, its parameters and its code."""
    (tmp_path / "input").write_text("in")
    (tmp_path / "output").write_text("content")
    how = {"parameters": {"count": 3, "sides": (1, 2)}, "inputs": {"model": tmp_path / "input"}, "code": "abc"}
    seal(tmp_path / "output", "engine", metadata={"tau": 0.3}, **how)
    return how


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    with writing(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "deep" / "a.txt").exists()
    assert left_in(tmp_path / "deep") == ["a.txt"]


def write_half(path: Path, error: BaseException, *, folder: bool = False) -> None:
    with writing(path, folder=folder) as temporary:
        (temporary / "part" if folder else temporary).write_text("half")
        raise error


@pytest.mark.parametrize("folder", [False, True])
def test_an_error_leaves_nothing(tmp_path, folder):
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "a", KeyboardInterrupt(), folder=folder)
    assert left_in(tmp_path) == []


def test_an_error_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ValueError, match="stop"):
        write_half(tmp_path / "a", ValueError("stop"))
    assert left_in(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_folder_replaces_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    with writing(tmp_path / "a", folder=True) as temporary:
        (temporary / "new").touch()
    assert left_in(tmp_path) == ["a"]
    assert left_in(tmp_path / "a") == ["new"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"file/a cannot be written .*: choose another"):
        write_half(tmp_path / "file" / "a", AssertionError("there is no place to write to"))


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_text("content")
    assert sha256_of(tmp_path / "a") == SHA256_OF_CONTENT


def test_the_hash_of_a_folder_sees_names_places_and_bytes_alone(tmp_path):
    def folder(name: str, files: dict[str, str]) -> str:
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return sha256_of(tmp_path / name)

    one = folder("one", {"a": "1", "deep/b": "2"})
    assert folder("same", {"deep/b": "2", "a": "1"}) == one
    others = [
        folder("byte", {"a": "1", "deep/b": "3"}),
        folder("name", {"a": "1", "deep/c": "2"}),
        folder("place", {"a": "1", "b": "2"}),
        folder("more", {"a": "1", "deep/b": "2", "c": ""}),
        folder("less", {"a": "1"}),
    ]
    assert len({one, *others}) == 6


def test_a_sidecar_says_what_the_artifact_is(tmp_path, made):
    artifact = load(tmp_path / "output", "model", "engine")
    assert (artifact.kind, artifact.sha256, artifact.size) == ("engine", SHA256_OF_CONTENT, 7)
    assert artifact.inputs == {"model": {"kind": "file", "sha256": sha256_of(tmp_path / "input")}}
    assert artifact.metadata == {"tau": 0.3}
    assert artifact.versions["lctr"]
    assert artifact.machine["gpu"]
    assert left_in(tmp_path) == ["input", "output", "output.json"]


def test_lineage_names_the_kind_of_a_sealed_input(tmp_path, made):
    (tmp_path / "next").write_text("next")
    artifact = seal(tmp_path / "next", "report", inputs={"engine": tmp_path / "output"})
    assert artifact.inputs["engine"] == {"kind": "engine", "sha256": SHA256_OF_CONTENT}


@pytest.mark.parametrize("content", ["contenT", "conten", "content ", ""])
def test_changed_content_is_refused(tmp_path, made, content):
    (tmp_path / "output").write_text(content)
    with pytest.raises(ArtifactError, match=r"output is not what its sidecar describes"):
        load(tmp_path / "output", "engine")


def test_a_changed_folder_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_text("1")
    seal(tmp_path / "a", "synthetic")
    load(tmp_path / "a", "synthetic")
    (tmp_path / "a" / "2.png").write_text("2")
    with pytest.raises(ArtifactError, match="sha256 differs"):
        load(tmp_path / "a", "synthetic")


def test_another_kind_is_refused(tmp_path, made):
    with pytest.raises(ArtifactError, match="is of kind 'engine', not model or onnx"):
        load(tmp_path / "output", "model", "onnx")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="gone does not exist"):
        load(tmp_path / "gone")


def test_a_missing_sidecar_is_named(tmp_path, made):
    sidecar_of(tmp_path / "output").unlink()
    with pytest.raises(ArtifactError, match=r"no sidecar output\.json"):
        load(tmp_path / "output")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"schema": 1}', '{"kind": "engine"}', "\x00", '{"schema": 1, "x": 2}']
)
def test_a_broken_sidecar_is_refused(tmp_path, made, text):
    sidecar_of(tmp_path / "output").write_text(text)
    with pytest.raises(ArtifactError, match=r"output\.json is no sidecar of ours"):
        read_sidecar(tmp_path / "output")


def test_a_sidecar_of_another_schema_is_refused(tmp_path, made):
    sidecar = sidecar_of(tmp_path / "output")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"schema": 999}))
    with pytest.raises(ArtifactError, match="schema this version does not know"):
        read_sidecar(tmp_path / "output")


def test_an_artifact_made_the_same_way_is_reused(tmp_path, made):
    found = reusable(tmp_path / "output", "engine", **made)
    assert found is not None
    assert found.metadata == {"tau": 0.3}


def test_any_change_of_what_it_was_made_from_ends_reuse(tmp_path, made):
    output = tmp_path / "output"
    assert not reusable(output, "model", **made)
    assert not reusable(output, "engine", **made | {"code": "abd"})
    assert not reusable(output, "engine", **made | {"parameters": {"count": 4, "sides": (1, 2)}})
    assert not reusable(output, "engine", **made | {"parameters": {"count": 3}})
    assert not reusable(output, "engine", **made | {"inputs": {}})
    assert not reusable(output, "engine", **made | {"inputs": {"other": tmp_path / "input"}})
    (tmp_path / "input").write_text("changed")
    assert not reusable(output, "engine", **made)


def test_changed_or_missing_content_is_not_reused(tmp_path, made):
    (tmp_path / "output").write_text("changed")
    assert not reusable(tmp_path / "output", "engine", **made)
    (tmp_path / "output").unlink()
    assert not reusable(tmp_path / "output", "engine", **made)


def test_another_version_of_a_package_ends_reuse(tmp_path, made, monkeypatch):
    monkeypatch.setattr(artifacts, "versions", lambda: {"lctr": "0.0.0"})
    assert not reusable(tmp_path / "output", "engine", **made)


def test_code_of_different_packages_differs():
    assert artifacts.code_version("calib") == artifacts.code_version("calib")
    assert artifacts.code_version("calib") != artifacts.code_version("calib", "engines")
