"""A deployment machine has the base install alone: what runs an engine must ask for nothing of the training stack."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import DEPLOYMENT_MACHINE, python
from PIL import Image

from engines.backend import BuildOptions
from engines.build import build
from engines.onnx_graph import graph_from_onnx
from toolchain.data.shapes import Shapes
from toolchain.stages import float_onnx

ROOT = Path(__file__).resolve().parent.parent
ONCE = ("--batch", "1", "--warmup", "1", "--rounds", "1", "--iterations", "1")


@pytest.fixture(scope="module")
def shipped(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is taken to a deployment machine: `model.onnx`, `model.engine` and a picture."""
    folder = tmp_path_factory.mktemp("shipped")
    onnx = float_onnx(model, folder / "model.onnx").artifact.path
    options = BuildOptions(metadata=graph_from_onnx(onnx).metadata)
    build(onnx, "onnxruntime", folder / "model.engine", options)
    Image.fromarray(Shapes("test")[0].image).save(folder / "picture.png")
    return folder


def commands(shipped: Path, results: Path) -> Iterator[tuple[object, ...]]:
    """Everything that has to run there."""
    onnx, engine = shipped / "model.onnx", shipped / "model.engine"
    yield "benchmark", onnx, engine, *ONCE, "--data", "shapes", "--images", "4", "--json"
    for file in (f"{onnx}@onnxruntime", engine):
        yield "evaluate", file, "--images", "4", "--json"
        yield "localize", file, shipped / "picture.png", "-o", results
    yield "inspect", engine, "--json"
    yield "build", onnx, "--backend", "onnxruntime", "-o", results / "again.engine"
    yield "package", onnx, "--format", "folder", "-o", results / "packaged"
    yield "verify", shipped
    yield "doctor", "--for", "benchmark"


def test_an_engine_is_run_without_the_training_stack(shipped: Path, tmp_path: Path) -> None:
    for arguments in commands(shipped, tmp_path):
        done = python(DEPLOYMENT_MACHINE, *arguments)
        assert done.returncode == 0, (arguments, done.stderr)


@pytest.mark.parametrize("named", ["", "@torch"])
def test_a_checkpoint_needs_the_training_stack_and_says_so(model: Path, shipped: Path, named: str) -> None:
    done = python(DEPLOYMENT_MACHINE, "localize", f"{model}{named}", shipped / "picture.png")
    assert done.returncode == 1
    assert re.fullmatch(r"Error: .*torch.* is not installed: install lctr\[compile\]\.", done.stderr.strip())


@pytest.mark.slow
def test_an_engine_is_run_by_a_bare_install(shipped: Path, tmp_path: Path) -> None:
    """Into an environment of its own, from a copy: an installation leaves its traces where it is made from."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "docs"))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    bin_ = tmp_path / "venv" / "bin"
    subprocess.run([bin_ / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", source], check=True)
    listed = subprocess.run([bin_ / "pip", "list"], capture_output=True, text=True, check=True).stdout.split()
    assert "onnxruntime" in listed
    assert not {"torch", "onnx", "safetensors"} & set(listed)
    for arguments in commands(shipped, tmp_path):
        done = subprocess.run(
            [bin_ / "lctr", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, (arguments, done.stderr)
