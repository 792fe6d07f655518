"""Packages as somebody without lctr meets them: parsed by Triton's schema, served, and run on their own."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import deployment
import grpc
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from deployment import lctr
from google.protobuf import text_format
from onnx import helper, numpy_helper
from PIL import Image
from square_finder import CARD, CLASSES, SIZE, finder
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from engines.registry import BACKENDS
from toolchain.artifacts import read_sidecar, seal, sidecar_of
from toolchain.card import ModelCard
from toolchain.preprocessing import Preprocessing

WINDOW = Preprocessing(SIZE, 36, mean=(0.1, 0.0, 0.2), std=(0.9, 1.0, 1.1))
"""Cuts the centre out of what was resized, and normalizes each channel differently."""
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


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return localizer(tmp_path_factory.mktemp("exported") / "model.onnx")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wide image with a green square and a tall one with a red square."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, size, box in (("green", (61, 40), (20, 12, 38, 30)), ("red", (45, 70), (10, 25, 30, 45))):
        image = Image.new("RGB", size)
        image.paste(CLASSES[name], box)
        image.save(folder / f"{name}.png")
    return sorted(folder.iterdir())


def localized(file: Path, pictures: list[Path]) -> list[dict[str, Any]]:
    return json.loads(lctr("localize", file, *pictures).stdout)


def config_of(package: Path, name: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse((package / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


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


def test_triton_serves_what_its_schema_accepts(exported: Path, tmp_path: Path) -> None:
    packaged(exported, "--format", "triton", "-o", tmp_path / "repository")
    config = config_of(tmp_path / "repository", "model")
    assert config.name == "model"
    assert config.platform == "onnxruntime_onnx"
    assert config.max_batch_size == 32
    (image,) = config.input
    assert (image.name, image.data_type, list(image.dims)) == ("image", model_config_pb2.TYPE_FP32, [3, SIZE, SIZE])
    outputs = {o.name: (o.data_type, list(o.dims), o.label_filename) for o in config.output}
    assert outputs == {
        "logits": (model_config_pb2.TYPE_FP32, [2], "labels.txt"),
        "map": (model_config_pb2.TYPE_FP32, [SIZE, SIZE], ""),
    }
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 32]
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)
    card = read_sidecar(exported).metadata
    told = {key: value.string_value for key, value in config.parameters.items()}
    assert {key: json.loads(told[f"lctr.{key}"]) for key in ("image_size", "resize", "mean", "std")} == json.loads(
        card["preprocessing"]
    )
    assert (told["lctr.tau"], told["lctr.protocol"]) == (card["tau"], card["protocol"])


def test_triton_s_folder_holds_the_file_its_origin_and_its_labels(exported: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    packaged(exported, "--format", "triton", "-o", repository, "--name", "birds")
    ours = {"birds/config.pbtxt", "birds/labels.txt", "birds/1/model.onnx", "birds/1/model.onnx.json"}
    assert files_in(repository) == ours | {"README.md", "client.py", "preprocessing.json"}
    assert (repository / "birds/1/model.onnx").read_bytes() == exported.read_bytes()
    assert (repository / "birds/1/model.onnx.json").read_bytes() == sidecar_of(exported).read_bytes()
    names = json.loads(read_sidecar(exported).metadata["class_names"])
    assert (repository / "birds/labels.txt").read_text().splitlines() == names
    assert lctr("verify", repository).exit_code == 0
    assert lctr("verify", repository / "birds" / "1").exit_code == 0
    told = (repository / "README.md").read_text()
    assert "curl -f localhost:8000/v2/models/birds/ready" in told
    assert '-v "$PWD":/models' in told
    assert "perf_analyzer -m birds" in told
    assert "$name" not in told


def test_triton_options_reach_its_configuration(exported: Path, tmp_path: Path) -> None:
    options = ("--max-batch", 64, "--instances", 3, "--queue-delay", "2ms", "--device", "gpu", "--name", "m")
    packaged(exported, "--format", "triton", "-o", tmp_path / "r", *options)
    config = config_of(tmp_path / "r", "m")
    assert config.max_batch_size == 64
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 64]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert config.instance_group[0].count == 3
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    packaged(exported, "--format", "triton", "-o", tmp_path / "r", "--max-batch", 1)
    single = config_of(tmp_path / "r", "model")
    assert single.max_batch_size == 1
    assert not single.HasField("dynamic_batching")


def test_a_tensorrt_engine_is_served_within_the_batches_it_was_built_for(exported: Path, tmp_path: Path) -> None:
    engine = engine_beside(exported, tmp_path / "built", "tensorrt")
    packaged(engine, "--format", "triton", "-o", tmp_path / "r")
    config = config_of(tmp_path / "r", "model")
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 16)
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert [list(output.dims) for output in config.output] == [[2], [SIZE, SIZE]]
    assert (tmp_path / "r/model/1/model.plan").read_bytes() == b"plan"
    assert "--gpus=1" in (tmp_path / "r/README.md").read_text()
    triton = ("--format", "triton", "-o", tmp_path / "no")
    assert "over the 16 that" in refused(engine, *triton, "--max-batch", 17, code=2)
    assert "needs a GPU" in refused(engine, *triton, "--device", "cpu", code=2)
    (tmp_path / "built" / "model.onnx").unlink()
    assert "copy that file to" in refused(engine, *triton)
    larger = engine_beside(exported, tmp_path / "larger", "tensorrt", (2, 4, 16))
    assert "build it with --batch 1 4 16" in refused(larger, *triton, code=2)
    assert not (tmp_path / "no").exists()


def test_what_triton_does_not_serve_is_refused(exported: Path, tmp_path: Path) -> None:
    engine = engine_beside(exported, tmp_path / "built", "tensorrt-rtx")
    told = refused(engine, "--format", "triton", "-o", tmp_path / "r")
    assert "Triton does not serve: build it with --backend tensorrt" in told
    memory = engine_beside(exported, tmp_path / "memory", "memory")
    assert "runs in lctr alone" in refused(memory, "--format", "triton", "-o", tmp_path / "r")
    assert {path.name for path in tmp_path.iterdir()} == {"built", "memory"}


@contextmanager
def server(model: Path) -> Iterator[int]:
    """Triton's protocol in this process, over ONNX Runtime; yields the port."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelInfer(self, request: Any, context: Any) -> Any:
            (fed,) = request.inputs
            image = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(list(fed.shape))
            answer = service_pb2.ModelInferResponse(model_name=request.model_name)
            outputs = session.run(None, {fed.name: image})
            for spec, values in zip(session.get_outputs(), outputs, strict=True):
                answer.outputs.add(name=spec.name, datatype="FP32", shape=values.shape)
                answer.raw_output_contents.append(values.tobytes())
            return answer

    with ThreadPoolExecutor(1) as pool:
        listening = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), listening)
        port = listening.add_insecure_port("localhost:0")
        listening.start()
        yield port
        listening.stop(None).wait()


def test_triton_s_client_finds_what_lctr_finds(exported: Path, pictures: list[Path], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    packaged(exported, "--format", "triton", "-o", repository)
    client = repository / "client.py"
    with server(repository / "model" / "1" / "model.onnx") as port:
        client.write_text(client.read_text().replace("localhost:8001", f"localhost:{port}"))
        found = alone(client, *pictures)
    for mine, theirs in zip(localized(exported, pictures), found, strict=True):
        assert theirs["class_name"] == mine["class_name"]
        assert theirs["box"] == pytest.approx(mine["box"], abs=1e-6)
    snippet = (repository / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert all(line in client.read_text().replace(f":{port}", ":8001") for line in snippet.splitlines())


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
