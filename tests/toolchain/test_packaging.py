"""Packages as somebody without lctr meets them: what is in the folder, run on its own; and what is refused."""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from deployment import lctr
from packages import SITE, alone, engine_beside, files_in, localized, localizer, packaged, refused
from square_finder import CARD, SIZE

from engines.registry import BACKENDS
from toolchain.artifacts import sidecar_of
from toolchain.preprocessing import Preprocessing

WINDOW = Preprocessing(SIZE, 36, mean=(0.1, 0.0, 0.2), std=(0.9, 1.0, 1.1))
"""Cuts the centre out of what was resized, and normalizes each channel differently."""


@pytest.fixture(params=["sidecar", "no sidecar", "engine", "all maps"])
def runnable(request: pytest.FixtureRequest, exported: Path, tmp_path: Path) -> Path:
    """Each form that ONNX Runtime runs; some with another preprocessing."""
    path = tmp_path / "model.int8.onnx"
    if request.param == "sidecar":
        return exported
    if request.param == "no sidecar":
        return localizer(path, replace(CARD, preprocessing=WINDOW), sidecar=False)
    if request.param == "all maps":
        return localizer(
            path, replace(CARD, preprocessing=replace(CARD.preprocessing, resize=None), tau=0.3), all_maps=True
        )
    engine = tmp_path / "model.engine"
    assert lctr("build", exported, "--backend", "onnxruntime", "-o", engine).exit_code == 0
    return engine


def test_a_folder_runs_without_lctr_and_finds_the_same(runnable: Path, pictures: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "packaged"
    packaged(runnable, "--format", "folder", "-o", folder)
    sidecar = {f"{runnable.name}.json"} if sidecar_of(runnable).exists() else set()
    plain = {"run.py", "preprocessing.json", "labels.txt", "README.md", "requirements.txt"}
    assert files_in(folder) == {runnable.name} | sidecar | plain
    moved = folder.rename(tmp_path / "somewhere else")
    for mine, theirs in zip(localized(runnable, pictures), alone(moved / "run.py", *pictures), strict=True):
        assert theirs["class_name"] == mine["class_name"] == Path(theirs["image"]).stem
        assert theirs["box"] == mine["box"]
        assert theirs["confidence"] == pytest.approx(mine["confidence"], abs=1e-6)


def stub_members() -> dict[str, set[str]]:
    """Class of TensorRT's stubs -> names in it, and "" -> names of the module."""
    module = (Path(SITE) / "tensorrt" / "__init__.pyi").read_text()
    found = {"": set(re.findall(r"^from \S+ import (\w+)", module, re.MULTILINE))}
    members: set[str] = set()
    # Line by line: the stubs of 10.13 are no Python that parses.
    for line in (Path(SITE) / "tensorrt_bindings" / "tensorrt.pyi").read_text().splitlines():
        if opened := re.match(r"class (\w+)", line):
            members = found.setdefault(opened[1], set())
        elif member := re.match(r"    (?:def |class )?(\w+)", line):
            members.add(member[1])
    return found


def rtx_members() -> dict[str, set[str]]:
    import tensorrt_rtx as trt

    return {"": set(dir(trt)), **{name: set(dir(getattr(trt, name))) for name in dir(trt)}}


def uses(tree: ast.Module, name: str) -> set[str]:
    """Attributes that are read off a name."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == name}


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "onnxruntime"])
def test_the_program_is_short_and_names_what_exists(backend: str, exported: Path, tmp_path: Path) -> None:
    plain = backend == "onnxruntime"
    file = exported if plain else engine_beside(exported, tmp_path / "built", backend)
    packaged(file, "--format", "folder", "-o", tmp_path / "packaged")
    script = tmp_path / "packaged" / "run.py"
    text = script.read_text()
    checked = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "120", "--select", "E,F,W", script],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout
    code = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) <= (50 if plain else 75)
    if plain:
        return
    members = rtx_members() if backend == "tensorrt-rtx" else stub_members()
    tree = ast.parse(text)
    assert {"Runtime", "Logger", "nptype"} <= uses(tree, "trt") <= members[""]
    for name, class_ in (("RUNTIME", "Runtime"), ("ENGINE", "ICudaEngine"), ("CONTEXT", "IExecutionContext")):
        assert uses(tree, name)
        assert uses(tree, name) <= members[class_], class_
    assert "WARNING" in members["Logger"]


def test_what_the_cuda_calls_of_the_rtx_program_are_named_exists() -> None:
    from cuda.bindings import runtime

    text = (Path(__file__).parents[2] / "toolchain/templates/package/tensorrt_rtx.py.txt").read_text()
    called = uses(ast.parse(text.replace("$engine", "model.engine")), "cuda")
    assert {"cudaMalloc", "cudaFree", "cudaMemcpy"} <= called <= set(dir(runtime))
    assert {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"} <= set(dir(runtime.cudaMemcpyKind))


@pytest.mark.parametrize(
    ("backend", "needed"),
    [
        ("tensorrt", {"tensorrt-cu12==11.4.0", "pycuda"}),
        ("tensorrt-rtx", {"tensorrt-rtx-cu13==1.7.1", "cuda-bindings"}),
    ],
)
def test_an_engine_asks_for_the_version_that_built_it(
    backend: str, needed: set[str], exported: Path, tmp_path: Path
) -> None:
    engine = engine_beside(exported, tmp_path / "built", backend)
    record = json.loads(sidecar_of(engine).read_text())
    record["versions"] = {"numpy": "2.4", "tensorrt_rtx_cu13": "1.7.1", "tensorrt_cu12": "11.4.0"}
    sidecar_of(engine).write_text(json.dumps(record))
    packaged(engine, "--format", "folder", "-o", tmp_path / "packaged")
    lines = (tmp_path / "packaged" / "requirements.txt").read_text().splitlines()
    runtime = {line.split(">=")[0] for line in lines} - {"numpy", "opencv-python-headless", "pillow"}
    assert runtime == needed


def test_every_backend_is_packaged_or_ours_alone() -> None:
    from toolchain.packaging.source import RUNTIMES

    assert set(BACKENDS) - set(RUNTIMES) == {"memory", "torch"}


def test_a_package_is_written_once_and_never_over_somebody_s_files(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packaged"
    folder.mkdir()
    arguments = (exported, "--format", "folder", "-o", folder)
    assert "reused" not in packaged(*arguments)
    assert "reused" in packaged(*arguments)
    assert "reused" not in packaged(exported, "--format", "triton", "-o", folder)
    (folder / "model" / "config.pbtxt").write_text("# tuned by hand\n")
    told = refused(*arguments)
    assert "empty the folder first" in told
    assert (folder / "model" / "config.pbtxt").read_text() == "# tuned by hand\n"
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("")
    assert "thesis" not in refused(exported, "--format", "folder", "-o", theirs)
    assert files_in(theirs) == {"thesis.tex"}


def test_a_changed_engine_is_not_packaged(exported: Path, tmp_path: Path) -> None:
    engine = engine_beside(exported, tmp_path / "built", "tensorrt")
    engine.write_bytes(b"plot")
    for format_ in ("triton", "folder"):
        assert "sha256 differs" in refused(engine, "--format", format_, "-o", tmp_path / "r")
    sidecar_of(engine).unlink()
    assert "its origin is unknown" in refused(engine, "--format", "folder", "-o", tmp_path / "r")
    assert {path.name for path in tmp_path.iterdir()} == {"built"}


def test_packaging_needs_no_training_stack(exported: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from cli import TRAINING_STACK, main; main(sys.argv[1:], standalone_mode=False); "
        "print(sorted(TRAINING_STACK & set(sys.modules)))"
    )
    arguments = ["package", str(exported), "--format", "triton", "-o", str(tmp_path / "r")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_nothing_is_left_where_packaging_breaks_off(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "labels.txt")

    monkeypatch.setattr("toolchain.packaging.folder.write_labels", full)
    assert "No space left" in refused(exported, "--format", "folder", "-o", tmp_path / "packaged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--format", "zip"), "unknown --format 'zip'"),
        (("--format", "folder", "--instances", "2"), "--format folder and --instances contradict"),
        (("--format", "triton", "--name", "../up"), "--name '../up' cannot name a folder"),
        (("--format", "triton", "--max-batch", "0"), "--max-batch 0"),
        (("--format", "triton", "--instances", "0"), "--instances 0"),
        (("--format", "triton", "--queue-delay", "100"), "--queue-delay 100 is no time"),
        (("--format", "triton", "--device", "tpu"), "unknown --device 'tpu'"),
    ],
)
def test_wrong_usage_is_refused(options: tuple[str, ...], complaint: str, exported: Path, tmp_path: Path) -> None:
    assert complaint in refused(exported, *options, "-o", tmp_path / "r", code=2)
    assert not (tmp_path / "r").exists()


def test_labels_stand_one_a_line(tmp_path: Path) -> None:
    names = ('a "quoted" gull', "M\u00f6we")
    path = localizer(tmp_path / "model.onnx", replace(CARD, class_names=names))
    packaged(path, "--format", "folder", "-o", tmp_path / "r")
    assert (tmp_path / "r" / "labels.txt").read_text(encoding="utf-8") == "".join(f"{name}\n" for name in names)
    broken = localizer(tmp_path / "broken.onnx", replace(CARD, class_names=("two\nlines", "one")))
    assert "is not one line" in refused(broken, "--format", "folder", "-o", tmp_path / "s")


def test_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    path = localizer(tmp_path / "model.onnx", sidecar=False)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    told = refused(path, "--format", "triton", "-o", tmp_path / "r")
    assert told.endswith("Export it with a dynamic batch.")
