"""What backends are called, and how a file on the command line names the one that is to open it."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from engines.registry import BACKENDS, backend, backend_of, file_and_backend, open_engine
from engines.tensorrt_rtx import TensorRTRTXBackend
from toolchain.artifacts import seal
from toolchain.errors import ArtifactError, UsageError


@pytest.mark.parametrize(
    ("name", "in_full"),
    [
        ("onnxruntime", "onnxruntime"),
        ("onnxruntime:cpu", "onnxruntime"),
        ("onnxruntime:cuda", "onnxruntime:cuda"),
        ("onnxruntime:tensorrt", "onnxruntime:tensorrt"),
        ("torch:eager:cpu:fp32", "torch"),
        ("torch:compile", "torch:compile"),
        ("torch:fp16:cuda:compile", "torch:compile:cuda:fp16"),
    ],
)
def test_a_name_leaves_out_what_is_plain_and_its_variants_stand_in_any_order(name: str, in_full: str) -> None:
    assert backend(name).name == in_full


def test_every_backend_goes_by_the_name_it_is_known_under() -> None:
    assert [backend(name).name for name in BACKENDS] == list(BACKENDS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorflow", "unknown backend 'tensorflow': choose one of onnxruntime, torch, .*memory"),
        ("onnxruntime:gpu", "unknown variant of onnxruntime 'gpu': choose one of cpu, cuda, tensorrt"),
        ("onnxruntime:", "unknown variant of onnxruntime ''"),
        ("torch:cpu:cuda", "'torch:cpu:cuda' is both cpu and cuda"),
        ("memory:cuda", "'memory' has no variants: leave ':cuda' out"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        backend(name)


def test_a_file_names_its_backend_behind_the_last_at_sign(tmp_path: Path) -> None:
    assert file_and_backend("model.onnx") == (Path("model.onnx"), None)
    assert file_and_backend("model.onnx@onnxruntime:cuda") == (Path("model.onnx"), "onnxruntime:cuda")
    assert file_and_backend("me@home.onnx@torch") == (Path("me@home.onnx"), "torch")
    # A folder's @ names nothing.
    assert file_and_backend("me@home/model.onnx") == (Path("me@home/model.onnx"), None)
    there = tmp_path / "model.onnx@torch"
    there.touch()
    assert file_and_backend(str(there)) == (there, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.onnx@", "names no backend: write FILE@BACKEND"),
        ("@torch", "names no file: write FILE@BACKEND"),
        ("me@home.onnx", "me@home.onnx is no file, and names no backend: unknown backend 'home.onnx'"),
    ],
)
def test_half_a_name_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        file_and_backend(text)


@pytest.mark.parametrize("name", ["tensorflow", "tensorflow:cuda", None])
def test_an_engine_of_a_backend_that_nobody_knows_is_no_engine(tmp_path: Path, name: str | None) -> None:
    (tmp_path / "a").touch()
    seal(tmp_path / "a", "engine", metadata={"backend": name})
    with pytest.raises(ArtifactError, match="not an engine of a backend known here"):
        backend_of(tmp_path / "a")


def test_what_a_first_run_compiles_is_kept_by_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Path | None] = {}

    def opening(self: TensorRTRTXBackend, engine: Path) -> nullcontext[None]:
        asked[engine.name] = self.runtime_cache
        return nullcontext()

    monkeypatch.setattr(TensorRTRTXBackend, "open", opening)
    for name in ("one", "other"):
        (tmp_path / name).write_text(name)
        seal(tmp_path / name, "engine", metadata={"backend": "tensorrt-rtx"})
        open_engine(tmp_path / name, runtime_caches=tmp_path / "kernels")
    assert {path.parent for path in asked.values() if path} == {tmp_path / "kernels"}
    assert asked["one"] != asked["other"]
    open_engine(tmp_path / "one")
    assert asked["one"] is None


def test_a_backend_that_compiles_nothing_late_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"inputs": [], "outputs": []}')
    seal(tmp_path / "a", "engine", metadata={"backend": "memory"})
    with open_engine(tmp_path / "a", runtime_caches=tmp_path / "kernels") as session:
        assert session.inputs == ()
    assert not (tmp_path / "kernels").exists()
