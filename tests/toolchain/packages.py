"""Localizers to package, the command, and what a program can do where lctr is not."""

import json
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path
from typing import Any

import deployment
import numpy as np
import onnx
from deployment import lctr
from onnx import helper, numpy_helper
from square_finder import CARD, CLASSES, SIZE, finder

from toolchain.artifacts import read_sidecar, seal, sidecar_of
from toolchain.card import ModelCard

SITE = sysconfig.get_path("purelib")
ALONE = """
import sys
from importlib.util import find_spec
from runpy import run_path
sys.path.append(sys.argv[1])
sys.argv[:] = sys.argv[2:]
for ours in ("toolchain", "engines", "calib", "exporters", "cli"):
    assert find_spec(ours) is None, ours
run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script where nothing of ours can be imported: what makes an editable installation importable is not read."""


def alone(script: Path, *arguments: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-I", "-S", "-c", ALONE]
    done = subprocess.run([*command, SITE, script, *arguments], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def localizer(path: Path, card: ModelCard = CARD, *, all_maps: bool = False, sidecar: bool = True) -> Path:
    """The square finder as ONNX, with another card; with the maps of all classes where asked, as it sees colours."""
    model = onnx.load(finder(path))
    del model.metadata_props[:]
    helper.set_model_props(model, card.to_metadata())
    if all_maps:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "green_red"))
        model.graph.node.append(helper.make_node("Gather", ["blurred", "green_red"], ["maps"], axis=1))
        model.graph.node.append(helper.make_node("Identity", ["map"], ["attention"]))
        logits = model.graph.output[0]
        shapes = {"maps": ["b", len(CLASSES), SIZE, SIZE], "attention": ["b", SIZE, SIZE]}
        values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, of) for name, of in shapes.items()]
        del model.graph.output[1:]
        model.graph.output.extend(values)
        assert logits.name == "logits"
    onnx.save(model, path)
    if sidecar:
        seal(path, "onnx", metadata=card.to_metadata())
    return path


def localized(file: Path, pictures: list[Path]) -> list[dict[str, Any]]:
    return json.loads(lctr("localize", file, *pictures).stdout)


def engine_beside(onnx_file: Path, folder: Path, backend: str, batch: tuple[int, int, int] = (1, 4, 16)) -> Path:
    """A sealed engine whose content no runtime has seen, beside the ONNX file that its sidecar names."""
    folder.mkdir(exist_ok=True)
    shutil.copy(onnx_file, folder)
    shutil.copy(sidecar_of(onnx_file), folder)
    engine = folder / "model.engine"
    engine.write_bytes(b"plan")
    metadata = {**read_sidecar(onnx_file).metadata, "backend": backend}
    seal(engine, "engine", parameters={"batch": list(batch)}, inputs={"model": onnx_file}, metadata=metadata)
    return engine


def packaged(*arguments: object) -> str:
    told = lctr("package", *arguments)
    assert told.exit_code == 0, told.output
    return told.stdout


refused = partial(deployment.refused, "package")


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
