"""What every backend keeps, whatever runs inside it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backend import Backend, BatchProfile, BuildOptions
from engines.memory import MemoryBackend
from engines.registry import BACKENDS, backend, open_engine
from toolchain.artifacts import load, sidecar_of
from toolchain.errors import ArtifactError, BackendError, BackendUnavailable, LctrError, ModelError, UsageError

BUILDERS = ("memory", "onnxruntime", "tensorrt-rtx")
RUNNERS = ("memory", "onnxruntime")
OPTIONS = BuildOptions(metadata={"tau": 0.3, "classes": ["a", "b"], "protocol": "lctr"})


def make(name: str) -> Backend:
    """The named backend; the in-memory one answers as the test model does."""
    if name == "memory":
        return MemoryBackend(lambda feeds: {"logits": feeds["image"].mean((1, 2))[:, :5]}, outputs=("logits",))
    return backend(name)


@pytest.fixture(params=BUILDERS)
def builder(request: pytest.FixtureRequest) -> Backend:
    return make(request.param)


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest) -> Backend:
    return make(request.param)


@pytest.fixture
def model(write_transformer: Callable[..., Path]) -> Path:
    return write_transformer()


def test_build_seals_what_it_wrote(builder: Backend, model: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    artifact = builder.build(
        model, tmp_path / "out" / "a.engine", OPTIONS, lambda done, total, note="": told.append((done, total))
    )
    assert load(artifact.path, "engine") == artifact
    assert artifact.metadata["backend"] == builder.name
    assert artifact.metadata["tau"] == 0.3
    assert artifact.inputs["model"]["kind"] == "file"
    assert told
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    assert sorted(p.name for p in artifact.path.parent.iterdir()) == ["a.engine", "a.engine.json"]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-300], lambda b: b[:40], lambda b: b"", lambda b: b"no protobuf at all"]
)
def test_a_damaged_model_is_refused_in_one_sentence_and_leaves_nothing(
    builder: Backend, model: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    model.write_bytes(damage(model.read_bytes()))
    with pytest.raises(ModelError, match=r"model\.onnx .*: export") as caught:
        builder.build(model, tmp_path / "out" / "a.engine", OPTIONS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_model_is_named(builder: Backend, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx cannot be read"):
        builder.build(tmp_path / "none.onnx", tmp_path / "a.engine", OPTIONS)


def test_an_unknown_target_is_refused(builder: Backend, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'sm42'"):
        builder.build(model, tmp_path / "a.engine", BuildOptions(targets=("sm42",)))
    assert not (tmp_path / "a.engine").exists()


def test_a_failed_build_leaves_the_old_engine_whole(builder: Backend, model: Path, tmp_path: Path) -> None:
    engine = builder.build(model, tmp_path / "a.engine", OPTIONS)
    model.write_bytes(b"")
    with pytest.raises(LctrError):
        builder.build(model, engine.path, OPTIONS)
    assert load(engine.path, "engine") == engine


def test_a_changed_or_cut_engine_is_not_opened(builder: Backend, model: Path, tmp_path: Path) -> None:
    engine = builder.build(model, tmp_path / "a.engine", OPTIONS).path
    whole = engine.read_bytes()
    for content in (whole[: len(whole) // 2], whole + b"x", whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        engine.write_bytes(content)
        with pytest.raises(ArtifactError, match="sha256 differs"), builder.open(engine):
            pytest.fail("it opened")


def test_an_engine_without_sidecar_is_not_opened(builder: Backend, model: Path, tmp_path: Path) -> None:
    engine = builder.build(model, tmp_path / "a.engine", OPTIONS).path
    sidecar_of(engine).unlink()
    with pytest.raises(ArtifactError, match="no sidecar"), builder.open(engine):
        pytest.fail("it opened")


def test_an_engine_of_another_backend_is_not_opened(builder: Backend, model: Path, tmp_path: Path) -> None:
    other = make("onnxruntime" if builder.name == "memory" else "memory")
    engine = other.build(model, tmp_path / "a.engine", OPTIONS).path
    with pytest.raises(BackendError, match=f"'{other.name}', not by '{builder.name}'"), builder.open(engine):
        pytest.fail("it opened")


def test_availability_and_open_agree(builder: Backend, model: Path, tmp_path: Path) -> None:
    available = builder.availability()
    assert available.build
    assert available.run == (not available.reason)
    engine = builder.build(model, tmp_path / "a.engine", OPTIONS).path
    if available.run:
        with builder.open(engine) as session:
            assert session.inputs == ("image",)
    else:
        with pytest.raises(BackendUnavailable, match="compiled ahead of time, not run") as caught:
            builder.open(engine)
        assert available.reason in str(caught.value)


def test_run_answers_every_output(runner: Backend, model: Path, tmp_path: Path, images: dict[str, Any]) -> None:
    with runner.open(runner.build(model, tmp_path / "a.engine", OPTIONS).path) as session:
        answers = session.run(images)
        assert tuple(answers) == session.outputs == ("logits",)
        assert answers["logits"].shape == (2, 5)
        np.testing.assert_array_equal(answers["logits"], session.run(images)["logits"])


def test_metadata_travels_as_strings(runner: Backend, model: Path, tmp_path: Path) -> None:
    with runner.open(runner.build(model, tmp_path / "a.engine", OPTIONS).path) as session:
        assert session.metadata == {"tau": "0.3", "classes": '["a", "b"]', "protocol": "lctr"}


def test_wrong_feeds_are_named(runner: Backend, model: Path, tmp_path: Path, images: dict[str, Any]) -> None:
    with runner.open(runner.build(model, tmp_path / "a.engine", OPTIONS).path) as session:
        with pytest.raises(BackendError, match="'image' is not fed"):
            session.run({})
        with pytest.raises(BackendError, match="'extra' is no input"):
            session.run({**images, "extra": images["image"]})


def test_time_gives_one_sample_per_iteration(
    runner: Backend, model: Path, tmp_path: Path, images: dict[str, Any]
) -> None:
    with runner.open(runner.build(model, tmp_path / "a.engine", OPTIONS).path) as session:
        timings = session.time(images, 3)
        assert timings.n == 3
        assert min(timings.milliseconds) > 0
        with pytest.raises(UsageError, match="0 iterations"):
            session.time(images, 0)


def test_a_bare_onnx_file_opens_in_onnx_runtime(model: Path, images: dict[str, Any]) -> None:
    with open_engine(model) as session:
        assert session.metadata == {"tau": "0.3"}
        assert session.run(images)["logits"].shape == (2, 5)


def test_open_engine_finds_the_backend_in_the_sidecar(model: Path, tmp_path: Path, images: dict[str, Any]) -> None:
    engine = make("onnxruntime").build(model, tmp_path / "engine.onnx", OPTIONS).path
    with open_engine(engine) as session:
        assert session.metadata["protocol"] == "lctr"
    shutil.copy(engine, tmp_path / "moved.engine")
    with pytest.raises(ArtifactError, match="no sidecar"):
        open_engine(tmp_path / "moved.engine")
    with pytest.raises(ArtifactError, match="does not exist"):
        open_engine(tmp_path / "none.engine")


def test_an_unknown_backend_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown backend 'tensorflow'.*onnxruntime, tensorrt, tensorrt-rtx, memory"):
        backend("tensorflow")
    assert [backend(name).name for name in BACKENDS] == list(BACKENDS)


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 4, 3)])
def test_a_batch_profile_out_of_order_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="out of order"):
        BatchProfile(*sizes)
