"""Every name of the vendor's API that our code uses, against the three APIs that there are.

- TensorRT-RTX: the module itself.
- TensorRT 11.x: the module of `tensorrt-cu13-bindings` itself. Its libraries are not needed to know its names: they
  are replaced by empty ones, made here, since nothing is called. Without a C compiler these tests are skipped.
- TensorRT 10.13: the type stubs of `tensorrt-stubs`, which mypy cannot parse.

What is used is read from the source: attributes of the module (`trt.Builder`, `self.trt.BuilderFlag.INT8`), and
attributes of whatever is annotated with a class of it (`config: tensorrt.IBuilderConfig`). A name that one of the three
lacks must be asked for by `hasattr`.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from engines import tensorrt_api

ENGINES = Path(tensorrt_api.__file__).parent
FILES = sorted(ENGINES.glob("tensorrt*.py"))
MODULES = ("trt", "tensorrt", "tensorrt_rtx")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
C_NAMES = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)
LIST = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
print(json.dumps({n: dir(v) if isinstance(v, type) else [] for n, v in vars(trt).items()}))
"""
Names = dict[str, set[str]]
"""Name in the module -> names in it, where it is a class."""


def listed(module: str, **environment: str) -> Names:
    answer = subprocess.run(
        [sys.executable, "-c", LIST, module],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return {name: set(members) for name, members in json.loads(answer.stdout).items()}


@pytest.fixture(scope="module")
def apis(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Names]:
    return {
        "TensorRT-RTX": listed("tensorrt_rtx"),
        "TensorRT 11": listed("tensorrt_bindings", LD_LIBRARY_PATH=str(empty_libraries(tmp_path_factory.mktemp("c")))),
        "TensorRT 10.13": stubbed(),
    }


def empty_libraries(folder: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    (folder / "none.c").write_text("".join(f"void {name}(void) {{}}\n" for name in C_NAMES))
    for library in LIBRARIES:
        output = folder / f"lib{library}.so.11"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", output, folder / "none.c"], check=True)
    return folder


def stubbed() -> Names:
    """Line by line: the stubs hold values that are no Python, so they cannot be parsed."""
    spec = find_spec("tensorrt_bindings")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    names: Names = {}
    bases: dict[str, list[str]] = {}
    # The second re-exports the first.
    lines = ((folder / "tensorrt.pyi").read_text() + (folder / "__init__.pyi").read_text()).splitlines()
    for line in lines:
        if found := re.match(r"class (\w+)(?:\((.*)\))?:", line):
            owner = found[1]
            names[owner], bases[owner] = set(), re.findall(r"\w+", found[2] or "")
        elif found := re.match(r"(?:def )?(\w+)[(:]", line):
            names[found[1]] = set()
        elif found := re.match(r"    (?:def |class )?(\w+)\s*[(:]", line):
            names[owner].add(found[1])

    def members(name: str) -> set[str]:
        return names.get(name, set()).union(*(members(base) for base in bases.get(name, ())))

    return {name: members(name) for name in names}


class Uses(ast.NodeVisitor):
    """`(class, member)` and `(name, "")` of the API that a source uses, and the names that it asks for by `hasattr`."""

    def __init__(self) -> None:
        self.used: set[tuple[str, str]] = set()
        self.asked: set[str] = set()
        self.class_of: dict[str, str] = {}
        """Expression -> its class, in the source that is being read."""

    def read(self, source: str) -> "Uses":
        self.class_of = {}
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign):
                self._annotated(ast.unparse(node.target), node.annotation)
            if isinstance(node, ast.arg) and node.annotation:
                self._annotated(node.arg, node.annotation)
            if isinstance(node, ast.FunctionDef) and node.returns:
                self._annotated(f"self.{node.name}()", node.returns)
        for node in ast.walk(tree):
            # `self.config = self._config(...)` has the class that `_config` returns.
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                known = self.class_of.get(f"{ast.unparse(node.value.func)}()")
                if known:
                    self.class_of[ast.unparse(node.targets[0])] = known
        self.visit(tree)
        return self

    def _annotated(self, target: str, annotation: ast.expr) -> None:
        text = annotation.value if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
        first = str(text).partition(" ")[0]
        if first.startswith("tensorrt."):
            self.class_of[target] = first.removeprefix("tensorrt.")

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "hasattr":
            assert isinstance(node.args[1], ast.Constant)
            self.asked.add(str(node.args[1].value))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        base = ast.unparse(node.value)
        owner, _, name = base.rpartition(".")
        if base in self.class_of:
            self.used.add((self.class_of[base], node.attr))
        elif base.split(".")[-1] in MODULES:
            self.used.add((node.attr, ""))
        elif owner.split(".")[-1] in MODULES:
            self.used.add((name, node.attr))
        self.generic_visit(node)


@pytest.fixture(scope="module")
def uses() -> Uses:
    found = Uses()
    for path in FILES:
        found.read(path.read_text())
    return found


def lacking(uses: Uses, api: Names) -> set[str]:
    """What is used of the API and is not in it: the class, or the member of a class that it has."""
    classes = {name for name, _ in uses.used if name not in api}
    return classes | {member for name, member in uses.used if member and name in api and member not in api[name]}


def test_the_reader_sees_what_is_used() -> None:
    source = (
        "def f(self, config: tensorrt.IBuilderConfig):\n"
        "    runtime: 'tensorrt.Runtime | None' = trt.Runtime(log)\n"
        "    config.set_flag(self.trt.BuilderFlag.INT8)\n"
        "    if hasattr(runtime, 'validity'): runtime.validity()\n"
    )
    found = Uses().read(source)
    classes = {("Runtime", ""), ("BuilderFlag", ""), ("IBuilderConfig", "")}
    assert found.used == classes | {("IBuilderConfig", "set_flag"), ("BuilderFlag", "INT8"), ("Runtime", "validity")}
    assert found.asked == {"validity"}


def test_enough_is_read_of_the_code(uses: Uses) -> None:
    assert len(uses.used) > 40
    assert {("Builder", "build_serialized_network"), ("IBuilderConfig", "set_timing_cache")} <= uses.used
    assert {("OnnxParser", "parse_from_file"), ("Runtime", "get_engine_validity")} <= uses.used


def test_what_an_api_lacks_is_asked_for_first(uses: Uses, apis: dict[str, Names]) -> None:
    for name, api in apis.items():
        assert lacking(uses, api) <= uses.asked, name


def test_nothing_is_used_that_none_has(uses: Uses, apis: dict[str, Names]) -> None:
    assert not set.intersection(*(lacking(uses, api) for api in apis.values()))


def test_what_the_releases_are_said_to_lack_they_lack(apis: dict[str, Names]) -> None:
    assert "IInt8EntropyCalibrator2" in apis["TensorRT 10.13"]
    assert "IInt8EntropyCalibrator2" not in apis["TensorRT 11"]
    assert "INT8" not in apis["TensorRT 11"]["BuilderFlag"] | apis["TensorRT-RTX"]["BuilderFlag"]
    assert "get_engine_validity" in apis["TensorRT-RTX"]["Runtime"]
    assert "get_engine_validity" not in apis["TensorRT 11"]["Runtime"]
    assert "ComputeCapability" in apis["TensorRT-RTX"]
    assert "ComputeCapability" not in apis["TensorRT 11"]
