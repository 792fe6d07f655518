"""How the options of a build are read, written as a command again, and refused."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cli import main
from engines.backend import BatchProfile, BuildOptions, ShapeProfile
from engines.build_options import UNITS, build_command, build_options, memory, shape_profiles
from engines.memory import MemoryBackend
from engines.onnxruntime import OnnxRuntimeBackend
from toolchain.errors import ArtifactError, UsageError

ODD: list[dict[str, Any]] = [
    {"targets": ("sm89",)},
    {"workspace": 4096},
    {"shapes": {"x": ShapeProfile((1,), (1,), (1,))}},
    {"optimization_level": 0},
    {"timing_cache": Path("a.cache")},
    {"version_compatible": True},
    {"hardware_compatibility": "ampere-plus"},
    {"calibration_cache": Path("a.cache")},
]
"""Each option that not every backend honours."""


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 * 1024**3), ("512MiB", 512 * 1024**2), ("64KiB", 65536), ("4096B", 4096)]
)
def test_memory_is_read_with_its_unit(text: str, size: int) -> None:
    assert memory(text) == size


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("4", "4 has no unit, and tools differ .*: write 4MiB or 4GiB"),
        ("4096", "write 4096MiB or 4096GiB"),
        *((text, "is no amount of memory") for text in ("4GB", "4 GiB", "-1GiB", "0MiB", "GiB", "1.5GiB", "")),
    ],
)
def test_memory_without_a_unit_of_its_own_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        memory(text)


def test_shapes_are_read_as_trtexec_writes_them() -> None:
    found = shape_profiles("image:1x3x32x32,a:0:1", "image:2x3x64x64,a:0:2", "image:4x3x96x96,a:0:3")
    assert found == {
        "image": ShapeProfile((1, 3, 32, 32), (2, 3, 64, 64), (4, 3, 96, 96)),
        "a:0": ShapeProfile((1,), (2,), (3,)),
    }


def test_a_shape_that_is_left_out_is_the_one_that_is_tuned_for() -> None:
    assert shape_profiles(None, "x:2x3", "x:4x3") == {"x": ShapeProfile((2, 3), (2, 3), (4, 3))}
    assert shape_profiles(None, None, None) == {}


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ((None, "x", None), "--opt-shapes 'x' is no shape"),
        ((None, "x:1x", None), "'x:1x' is no shape"),
        ((None, "x:1,", None), "'' is no shape"),
        ((None, "x:1,x:2", None), "names 'x' twice"),
        (("x:1", None, None), "--min-shapes needs a shape to tune for: add --opt-shapes"),
        (("x:1", "x:1", "y:1"), "--max-shapes and --opt-shapes differ about 'x'"),
        (("x:1x1", "x:1", None), "profile 1x1/1/1 is out of order: give as many dimensions"),
        (("x:3", "x:2", None), "profile 3/2/2 is out of order"),
        ((None, "x:0", None), "profile 0/0/0 is out of order"),
    ],
)
def test_shapes_that_cannot_be_meant_are_refused(shapes: tuple[str | None, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        shape_profiles(*shapes)


def test_batch_and_shapes_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="--batch and --opt-shapes contradict"):
        build_options(batch=(1, 1, 1), opt_shapes="x:1")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"optimization_level": 6}, r"no optimization level 6: give 0 \(quick\) to 5"),
        ({"hardware_compatibility": "ampere"}, "unknown hardware compatibility 'ampere': .*ampere-plus, same-compute"),
    ],
)
def test_a_level_that_there_is_not_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        BuildOptions(**options)


@pytest.mark.parametrize("option", ODD, ids=lambda option: next(iter(option)))
@pytest.mark.parametrize("backend", [OnnxRuntimeBackend(), MemoryBackend()], ids=lambda backend: backend.name)
def test_a_backend_that_compiles_nothing_refuses_every_option(backend: Any, option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"takes no .*; leave it out"):
        backend.build(Path("none.onnx"), Path("a.engine"), BuildOptions(**option))


@pytest.mark.parametrize("option", ODD[:-1], ids=lambda option: next(iter(option)))
def test_every_option_shapes_the_recorded_parameters(option: dict[str, Any]) -> None:
    assert BuildOptions(**option).parameters() != BuildOptions().parameters()


def test_a_calibration_cache_counts_by_its_content(tmp_path: Path) -> None:
    options = BuildOptions(calibration_cache=tmp_path / "a.cache")
    with pytest.raises(ArtifactError, match=r"a\.cache cannot be read"):
        options.parameters()
    seen = []
    for content in ("one", "two"):
        (tmp_path / "a.cache").write_text(content)
        seen.append(options.parameters())
    assert seen[0] != seen[1]
    assert seen[0]["calibration_cache"]["name"] == "a.cache"


sizes = st.integers(1, 2**40)
profiles = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4).map(
    lambda dims: ShapeProfile(*zip(*(sorted(d) for d in dims), strict=True))
)
options_stated = st.builds(
    BuildOptions,
    targets=st.lists(st.sampled_from(["sm80", "sm89"]), unique=True).map(tuple),
    workspace=st.none() | sizes,
    batch=st.tuples(st.integers(1, 4), st.integers(4, 8), st.integers(8, 9)).map(lambda b: BatchProfile(*b)),
    optimization_level=st.none() | st.integers(0, 5),
    timing_cache=st.none() | st.just(Path("kernel times.cache")),
    version_compatible=st.booleans(),
    hardware_compatibility=st.sampled_from(["none", "ampere-plus", "same-compute-capability"]),
) | st.builds(BuildOptions, shapes=st.dictionaries(st.sampled_from(["image", "a b", "x:0"]), profiles, min_size=1))


@given(options_stated)
def test_the_command_states_the_options_that_were_recorded(options: BuildOptions) -> None:
    command = build_command("my model.onnx", Path("a.engine"), "tensorrt", options.parameters())
    name, build, model, *words = shlex.split(command)
    assert (name, build, model) == ("lctr", "build", "my model.onnx")
    context = main.commands["build"].make_context("build", [model, *words])
    stated = {parameter.name for decorator in [main.commands["build"]] for parameter in decorator.params}
    others = {"models", "backend", "precision", "data", "max_drop", "eval_images", "min_coverage", "fused_attention"}
    engine_options = {k: context.params[k] for k in stated - others - {"output", "as_json"} if k}
    assert build_options(**engine_options) == options
    assert context.params["backend"] == "tensorrt"
    assert context.params["output"] == Path("a.engine")


def test_every_unit_is_written_so_that_it_reads_back() -> None:
    for factor in UNITS.values():
        command = build_command("m", Path("e"), "b", BuildOptions(workspace=3 * factor).parameters())
        assert memory(shlex.split(command)[6]) == 3 * factor


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--workspace", "4"], "--workspace 4 has no unit"),
        (["--batch", "1", "1", "1", "--opt-shapes", "x:1"], "contradict each other"),
        (["--optimization-level", "9"], "no optimization level 9"),
        (
            ["--opt-shapes", "x:1", "--precision", "auto", "--data", "shapes"],
            "--precision auto and --opt-shapes contra",
        ),
    ],
)
def test_the_command_line_refuses_in_one_sentence(arguments: list[str], reason: str) -> None:
    answer = CliRunner().invoke(main, ["build", "m.onnx", "--backend", "onnxruntime", *arguments])
    assert answer.exit_code == 2
    assert reason in answer.stderr
    assert answer.stderr.count("\n") == 1
