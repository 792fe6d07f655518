"""What every backend keeps, whatever runs inside it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_localizer import AS_STRINGS, OUTPUTS, images, opened, reference

from engines.backend import Backend, BatchProfile, BuildOptions, Session
from engines.memory import MemoryBackend, MemorySession
from engines.registry import backend, open_engine
from engines.timing import TimingOptions
from toolchain.artifacts import load, sidecar_of
from toolchain.errors import ArtifactError, BackendError, BackendUnavailable, LctrError, ModelError, UsageError

BUILDERS = ("memory", "onnxruntime", "tensorrt-rtx")
RUNNERS = {
    "memory": (),
    "onnxruntime": (),
    "torch": (),
    "torch:fp16": (),
    "torch:compile": (pytest.mark.slow,),
    "onnxruntime:cuda": (pytest.mark.gpu,),
    "torch:cuda": (pytest.mark.gpu,),
    "torch:compile:cuda:fp16": (pytest.mark.gpu,),
}
"""Backend -> what running it asks for."""
ON_A_GPU = {"onnxruntime": {"transfers"}, "torch": {"cuda_graph", "spin_wait", "transfers", "cold_cache"}}
"""Timing options that are honoured there; on a CPU a cold cache is."""
TOLERANCES = {True: 2e-2, False: 1e-5}
"""Of outputs near 5, by whether a backend computes in FP16."""
OPTIONS = BuildOptions(metadata={"tau": 0.3, "classes": ["a", "b"], "protocol": "lctr"})


def make(name: str) -> Backend:
    """The named backend; the in-memory one answers as the test model does."""
    if name == "memory":
        return MemoryBackend(lambda feeds: {"logits": feeds["image"].mean((1, 2))[:, :5]}, outputs=("logits",))
    return backend(name)


def honoured(runner: str) -> set[str]:
    return ON_A_GPU[runner.partition(":")[0]] if "cuda" in runner else {"cold_cache"}


@pytest.fixture(params=BUILDERS)
def builder(request: pytest.FixtureRequest) -> Backend:
    return make(request.param)


@pytest.fixture(params=[pytest.param(name, marks=marks) for name, marks in RUNNERS.items()])
def runner(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def session(runner: str, tmp_path: Path) -> Iterator[Session]:
    """The tiny localizer, open in each backend."""
    with opened(runner, tmp_path) as session:
        yield session


@pytest.fixture
def tolerance(runner: str) -> float:
    return TOLERANCES["fp16" in runner]


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


def test_outputs_are_the_reference_s_at_every_batch_size(session: Session, tolerance: float) -> None:
    assert session.inputs == ("image",)
    assert session.outputs == OUTPUTS
    for count in (1, 3, 2):
        feeds = images(count)
        found = session.run(feeds)
        assert tuple(found) == OUTPUTS
        for output, right in reference(feeds).items():
            assert found[output].dtype == np.float32
            np.testing.assert_allclose(found[output], right, atol=tolerance, err_msg=output)


def test_a_run_changes_no_feed_and_repeats(session: Session) -> None:
    feeds = images(2)
    feeds["image"].setflags(write=False)
    first, second = session.run(feeds), session.run(feeds)
    np.testing.assert_array_equal(feeds["image"], images(2)["image"])
    for output in OUTPUTS:
        np.testing.assert_array_equal(first[output], second[output])


def test_metadata_are_strings(session: Session) -> None:
    assert dict(session.metadata) == AS_STRINGS


def test_wrong_names_are_refused_with_the_right_ones(session: Session) -> None:
    for ask in (session.run, lambda feeds: session.time(feeds, 1)):
        with pytest.raises(BackendError, match="'image' is not fed: feed exactly image"):
            ask({})
        with pytest.raises(BackendError, match="'extra' is no input: feed exactly image"):
            ask({**images(1), "extra": images(1)["image"]})


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (np.zeros((2, 3, 4, 4), np.float32), r"float32\[2, 3, 4, 4\]"),
        (np.zeros((3, 8, 8), np.float32), r"float32\[3, 8, 8\]"),
        (np.zeros((2, 3, 8, 8), np.float64), r"float64\[2, 3, 8, 8\]"),
    ],
)
def test_a_wrong_shape_or_type_is_refused_with_the_right_one(session: Session, wrong: NDArray[Any], found: str) -> None:
    if isinstance(session, MemorySession):
        pytest.skip("its engine holds names alone")
    for ask in (session.run, lambda feeds: session.time(feeds, 1)):
        with pytest.raises(BackendError, match=rf"'image' of .* is {found}: feed float32\['batch', 3, 8, 8\]"):
            ask({"image": wrong})


def test_time_gives_one_sample_per_iteration(session: Session) -> None:
    timings = session.time(images(2), 3)
    assert timings.n == 3
    assert min(timings.milliseconds) > 0
    assert {option.name for option in fields(TimingOptions)} <= set(timings.settings)
    with pytest.raises(UsageError, match="0 iterations"):
        session.time(images(2), 0)


@pytest.mark.parametrize(
    "asked", [{"cuda_graph": True}, {"spin_wait": True}, {"transfers": False}, {"streams": 2}, {"cold_cache": True}]
)
def test_a_timing_option_is_honoured_or_refused(session: Session, runner: str, asked: dict[str, Any]) -> None:
    ((option, value),) = asked.items()
    options = TimingOptions(**asked)
    if option in honoured(runner):
        assert session.time(images(2), 1, options).settings[option] == value
    else:
        with pytest.raises(UsageError, match=r"leave .* out\.$"):
            session.time(images(2), 1, options)


def test_two_sessions_at_once_do_not_meet(runner: str, tolerance: float, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with opened(runner, tmp_path) as one:
        with opened(runner, tmp_path / "other") as other:
            both = [one.run(images(2)), other.run(images(3)), one.run(images(2))]
        np.testing.assert_array_equal(both[0]["logits"], both[2]["logits"])
        np.testing.assert_allclose(both[1]["logits"], reference(images(3))["logits"], atol=tolerance)
        # The one is not closed with the other.
        np.testing.assert_array_equal(one.run(images(2))["logits"], both[0]["logits"])


def test_a_session_is_of_no_use_after_it_was_closed(runner: str, tmp_path: Path) -> None:
    with opened(runner, tmp_path) as session:
        session.run(images(1))
    for ask in (session.run, lambda feeds: session.time(feeds, 1)):
        with pytest.raises(BackendError, match="is closed: open it again"):
            ask(images(1))


def test_a_bare_onnx_file_opens_in_onnx_runtime(model: Path) -> None:
    with open_engine(model) as session:
        assert session.metadata == {"tau": "0.3"}
        assert session.outputs == ("logits",)


def test_open_engine_finds_the_backend_in_the_sidecar(model: Path, tmp_path: Path) -> None:
    engine = make("onnxruntime").build(model, tmp_path / "engine.onnx", OPTIONS).path
    with open_engine(engine) as session:
        assert session.metadata["protocol"] == "lctr"
    shutil.copy(engine, tmp_path / "moved.engine")
    with pytest.raises(ArtifactError, match="no sidecar"):
        open_engine(tmp_path / "moved.engine")
    with pytest.raises(ArtifactError, match="does not exist"):
        open_engine(tmp_path / "none.engine")


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 4, 3)])
def test_a_batch_profile_out_of_order_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="out of order"):
        BatchProfile(*sizes)
