"""TensorRT's build and open against small modules in the shape of 10.x and of 11.x; see `fakes`.

Neither needs a GPU: the fake builder answers with the JSON of what was set, and engines are refused before they are
loaded. The session that would run them is a fake, too.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engines import tensorrt_api
from engines.backend import BatchProfile, BuildOptions, ShapeProfile
from engines.build import build
from engines.inspect import inspect
from engines.registry import backend, open_engine
from engines.tensorrt import TensorRTBackend
from toolchain.artifacts import load, sidecar_of
from toolchain.errors import ArtifactError, BackendError, BackendUnavailable, UsageError

FAKES = Path(__file__).parent / "fakes"
L4, A10, T4 = "NVIDIA L4, 8.9, 570.1", "NVIDIA A10, 8.6, 570.1", "Tesla T4, 7.5, 570.1"
CACHE = "TRT-101300-EntropyCalibration2\nx: 3c010a14\n"
Put = Callable[..., None]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """`put(release, gpu)`: from now on this machine has that TensorRT and that GPU."""

    def putter(release: str | None = None, gpu: str | None = L4) -> None:
        if release:
            monkeypatch.syspath_prepend(str(FAKES))
            monkeypatch.syspath_prepend(str(FAKES / release))
            sys.modules.pop("tensorrt", None)
        monkeypatch.setattr(tensorrt_api, "gpu_description", lambda: gpu)

    yield putter
    for name in ("tensorrt", "fake_tensorrt_builder"):
        sys.modules.pop(name, None)


@pytest.fixture(params=["ten", "eleven"])
def release(request: pytest.FixtureRequest, put: Put) -> str:
    put(request.param)
    return str(request.param)


def built(model: Path, **options: Any) -> dict[str, Any]:
    """What the fake builder was told."""
    artifact = TensorRTBackend().build(model, model.with_name("a.engine"), BuildOptions(**options))
    record: dict[str, Any] = json.loads(artifact.path.read_bytes())
    return record


def test_a_plain_build_is_strongly_typed_detailed_and_of_one_profile(
    release: str, write_product: Callable[..., Path], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    options = BuildOptions(batch=BatchProfile(1, 2, 4))
    model = write_product(True, True)
    artifact = TensorRTBackend().build(
        model, tmp_path / "a.engine", options, lambda done, total, note="": told.append((done, total))
    )
    assert json.loads(artifact.path.read_bytes()) == {
        "flags": [],
        "strongly_typed": True,
        "verbosity": "DETAILED",
        "workspace": None,
        "level": None,
        "hardware": None,
        "profile": {"x": [[1, 16, 64], [2, 16, 64], [4, 16, 64]]},
        "calibration_profile": None,
        "scales": None,
    }
    assert told == [(1, 2), (2, 2)]
    assert load(artifact.path, "engine") == artifact
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.engine", "a.engine.json", "product.onnx"]


def test_inspect_reads_what_the_inspector_listed(release: str, write_product: Callable[..., Path]) -> None:
    model = write_product(True, True)
    built(model)
    found = inspect(model.with_name("a.engine"))
    assert [(p.name, p.type, p.kernel) for p in found.products] == [("product", "int8", "product")]
    assert (found.backend, found.layers, found.weight_bytes) == ("tensorrt", 1, {"int8": 64 * 128})


def test_every_option_reaches_the_builder(release: str, write_product: Callable[..., Path]) -> None:
    shapes = {"x": ShapeProfile((1, 16, 64), (3, 16, 64), (5, 16, 64))}
    record = built(
        write_product(True, True),
        workspace=1 << 30,
        optimization_level=5,
        version_compatible=True,
        hardware_compatibility="ampere-plus",
        shapes=shapes,
    )
    assert record["flags"] == ["VERSION_COMPATIBLE"]
    assert (record["workspace"], record["level"], record["hardware"]) == (1 << 30, 5, "AMPERE_PLUS")
    assert record["profile"] == {"x": [[1, 16, 64], [3, 16, 64], [5, 16, 64]]}


def test_a_timing_cache_is_read_and_written_back(put: Put, write_product: Callable[..., Path], tmp_path: Path) -> None:
    put("ten")
    cache = tmp_path / "kernels.cache"
    model = write_product(True, True)
    built(model, timing_cache=cache)
    assert cache.read_bytes() == b"+"
    built(model, timing_cache=cache)
    assert cache.read_bytes() == b"++"
    for content in (b"garbage", b"other GPU"):
        cache.write_bytes(content)
        with pytest.raises(BackendError, match=r"kernels\.cache is no timing cache of this TensorRT and GPU: name"):
            built(model, timing_cache=cache)
        assert cache.read_bytes() == content


def test_a_timing_cache_that_cannot_be_read_is_named(put: Put, write_product: Callable[..., Path]) -> None:
    put("ten")
    model = write_product(True, True)
    with pytest.raises(ArtifactError, match=r"cannot be read .*name another timing cache"):
        built(model, timing_cache=model.parent)


def test_an_engine_is_reused_on_the_gpu_that_it_was_built_for(put: Put, write_product: Callable[..., Path]) -> None:
    put("ten")
    model = write_product(True, True)
    engine = model.with_suffix(".engine")
    reused = []
    for gpu in (L4, L4, A10):
        put(gpu=gpu)
        artifact, again = build(model, "tensorrt", engine, BuildOptions())
        reused.append(again)
    assert reused == [False, True, False]
    assert artifact.metadata["built_for"] == {
        "product": "TensorRT",
        "version": "10.13.0.35",
        "model": "product.onnx",
        "gpu": {"name": "NVIDIA A10", "capability": "8.6", "driver": "570.1"},
    }


@pytest.mark.parametrize("half", [False, True])
def test_implicit_int8_takes_the_cache_and_leaves_types_open(
    put: Put, write_transformer: Callable[..., Path], tmp_path: Path, half: bool
) -> None:
    put("ten")
    cache = tmp_path / "a.cache"
    cache.write_text(CACHE)
    names = ("patch", "q", "k", "v", "proj", "fc1", "fc2", "head")
    record = built(write_transformer(precision="fp16" if half else "fp32", floats=names), calibration_cache=cache)
    assert record["flags"] == (["INT8", "FP16"] if half else ["INT8"])
    assert record["strongly_typed"] is False
    assert record["scales"] == CACHE
    assert record["calibration_profile"] == record["profile"] == {"image": [[n, 3, 32, 32] for n in (1, 8, 32)]}


def test_implicit_int8_is_refused_where_the_release_has_none(
    put: Put, write_product: Callable[..., Path], tmp_path: Path
) -> None:
    put("eleven")
    (tmp_path / "a.cache").write_text(CACHE)
    with pytest.raises(UsageError, match=r"TensorRT 11\.4\.0\.106 has no implicit INT8: insert Q/DQ with `lctr quan"):
        built(write_product(False, False), calibration_cache=tmp_path / "a.cache")


def test_a_cache_that_does_not_belong_is_refused(put: Put, write_product: Callable[..., Path], tmp_path: Path) -> None:
    put("ten")
    cache = tmp_path / "a.cache"
    with pytest.raises(ArtifactError, match=r"a\.cache cannot be read"):
        built(write_product(False, False), calibration_cache=cache)
    cache.write_text("x: 3c010a14\n")
    with pytest.raises(UsageError, match=r"a\.cache is no calibration cache: write one with"):
        built(write_product(False, False), calibration_cache=cache)
    cache.write_text(CACHE.replace("101300", "100800"))
    with pytest.raises(
        UsageError, match=r"TRT-100800-.* is not for TensorRT 10\.13\.0\.35: .*--cache-version 10\.13\.0`"
    ):
        built(write_product(False, False), calibration_cache=cache)
    cache.write_text(CACHE)
    with pytest.raises(UsageError, match=r"product\.onnx has Q/DQ, beside which no calibration cache counts"):
        built(write_product(True, True), calibration_cache=cache)
    assert not (tmp_path / "a.engine").exists()


def test_a_target_is_refused_and_what_widens_the_engine_is_named(put: Put, write_product: Callable[..., Path]) -> None:
    put("ten")
    with pytest.raises(UsageError, match=r"TensorRT takes no target 'sm89': .* --hardware-compatibility"):
        built(write_product(True, True), targets=("sm89",))


def test_without_a_gpu_tensorrt_names_the_builder_that_needs_none(put: Put, write_product: Callable[..., Path]) -> None:
    put("ten", gpu=None)
    available = TensorRTBackend().availability()
    assert not available.build
    assert not available.run
    with pytest.raises(BackendUnavailable, match="--backend tensorrt-rtx, which needs none") as caught:
        built(write_product(True, True))
    assert str(caught.value) == available.reason


def test_type_stubs_alone_are_no_tensorrt(put: Put, write_product: Callable[..., Path], tmp_path: Path) -> None:
    put(gpu=L4)
    (tmp_path / "stubs" / "tensorrt").mkdir(parents=True)
    (tmp_path / "stubs" / "tensorrt" / "__init__.pyi").touch()
    sys.path.insert(0, str(tmp_path / "stubs"))
    try:
        assert "not installed here: install lctr[tensorrt]" in TensorRTBackend().availability().reason
        with pytest.raises(BackendUnavailable, match=r"install lctr\[tensorrt\]"):
            built(write_product(True, True))
    finally:
        sys.path.remove(str(tmp_path / "stubs"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was given to the session that runs engines."""
    calls: list[tuple[Any, ...]] = []

    @contextmanager
    def running(
        trt: ModuleType, name: str, plan: bytes, source: Path, metadata: dict[str, str], *, runtime_cache: Any = None
    ) -> Iterator[str]:
        calls.append((trt.__version__, name, plan, source, metadata, runtime_cache))
        yield "a session"

    module = ModuleType("engines.tensorrt_session")
    module.running = running  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "engines.tensorrt_session", module)
    return calls


def engine_of(model: Path, **options: Any) -> Path:
    options = {"metadata": {"tau": 0.3}, **options}
    return backend("tensorrt").build(model, model.with_name("a.engine"), BuildOptions(**options)).path


def test_an_engine_of_this_release_and_gpu_is_opened(
    release: str, write_product: Callable[..., Path], opened: list[tuple[Any, ...]]
) -> None:
    engine = engine_of(write_product(True, True))
    with open_engine(engine) as session:
        assert session == "a session"
    version = {"ten": "10.13.0.35", "eleven": "11.4.0.106"}[release]
    assert opened == [(version, "TensorRT", engine.read_bytes(), engine, {"tau": "0.3"}, None)]


@pytest.mark.parametrize(
    ("options", "gpu", "runs"),
    [
        ({}, A10, False),
        ({}, "NVIDIA L40S, 8.9, 570.1", False),
        ({"hardware_compatibility": "same-compute-capability"}, "NVIDIA L40S, 8.9, 570.1", True),
        ({"hardware_compatibility": "same-compute-capability"}, A10, False),
        ({"hardware_compatibility": "ampere-plus"}, A10, True),
        ({"hardware_compatibility": "ampere-plus"}, "NVIDIA B200, 10.0, 570.1", True),
        ({"hardware_compatibility": "ampere-plus"}, T4, False),
    ],
)
def test_an_engine_for_another_gpu_is_refused_with_the_command_that_builds_it(
    put: Put,
    write_product: Callable[..., Path],
    opened: list[tuple[Any, ...]],
    options: dict[str, Any],
    gpu: str,
    runs: bool,
) -> None:
    put("ten")
    engine = engine_of(write_product(True, True), **options)
    put(gpu=gpu)
    if runs:
        with open_engine(engine):
            assert len(opened) == 1
        return
    level = options.get("hardware_compatibility", "")
    flag = f" --hardware-compatibility {level}" if level else ""
    command = f"`lctr build product.onnx --backend tensorrt{flag} -o {engine}`"
    with pytest.raises(BackendError, match=rf"built for TensorRT 10\.13\.0\.35 on NVIDIA L4 \(SM89\).*{command}"):
        open_engine(engine)
    assert opened == []


@pytest.mark.parametrize(("compatible", "runs"), [(True, True), (False, False)])
def test_an_engine_of_an_older_release_needs_version_compatibility(
    put: Put, write_product: Callable[..., Path], opened: list[tuple[Any, ...]], compatible: bool, runs: bool
) -> None:
    put("ten")
    engine = engine_of(write_product(True, True), version_compatible=compatible, batch=BatchProfile(1, 1, 1))
    put("eleven")
    if runs:
        with open_engine(engine):
            assert opened[0][0] == "11.4.0.106"
    else:
        with pytest.raises(
            BackendError, match=r"TensorRT 10\.13.*, and this is TensorRT 11\.4\.0\.106 .*--batch 1 1 1"
        ):
            open_engine(engine)


def test_an_engine_of_a_newer_release_is_never_taken(
    put: Put, write_product: Callable[..., Path], opened: list[tuple[Any, ...]]
) -> None:
    put("eleven")
    engine = engine_of(write_product(True, True), version_compatible=True)
    put("ten")
    with pytest.raises(BackendError, match=r"TensorRT 11\.4\.0\.106 on .*, and this is TensorRT 10\.13"):
        open_engine(engine)


def test_an_engine_whose_sidecar_does_not_say_what_it_is_for_is_refused(
    put: Put, write_product: Callable[..., Path], opened: list[tuple[Any, ...]]
) -> None:
    put("ten")
    engine = engine_of(write_product(True, True))
    record = json.loads(sidecar_of(engine).read_text())
    del record["metadata"]["built_for"]
    sidecar_of(engine).write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match=rf"does not say .*--backend tensorrt -o {re.escape(str(engine))}`"):
        open_engine(engine)
