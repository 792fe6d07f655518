"""What belongs to one backend alone: its errors, what it loads, what it says of a machine."""

import json
import os
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_localizer import IMAGE, OUTPUTS, reference, written
from tiny_localizer import images as tiny_images

from engines import tensorrt_api, torch_runtime
from engines.backend import Availability, BuildOptions, Feeds, ShapeProfile
from engines.memory import MemoryBackend, MemorySession
from engines.onnxruntime import OnnxRuntimeBackend
from engines.onnxruntime_session import BoundCall, require_provider
from engines.registry import backend, open_engine
from engines.sealing import built
from engines.tensorrt_rtx import TensorRTRTXBackend
from engines.torch_runtime import TorchBackend
from toolchain.artifacts import gpu_description, seal, sidecar_of
from toolchain.errors import ArtifactError, BackendError, BackendUnavailable, UsageError

L4 = "NVIDIA L4, 8.9, 570.1"


def test_importing_engines_loads_no_training_stack_and_no_gpu_runtime() -> None:
    code = (
        "import sys, engines.backend, engines.registry, engines.benchmark, engines.inspect, engines.memory\n"
        "import engines.tensorrt, engines.tensorrt_rtx, engines.onnxruntime\n"
        "for name in engines.registry.BACKENDS: engines.registry.backend(name).availability()\n"
        "print(sorted({'torch', 'onnx', 'safetensors', 'tensorrt_rtx', 'tensorrt', 'cuda'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_onnx_runtime_is_loaded_only_when_it_is_asked_for() -> None:
    code = "import sys, engines.registry, engines.inspect, engines.benchmark; print('onnxruntime' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((2, 3, 16, 16), np.float32, r"'image' of .* is float32\[2, 3, 16, 16\]: feed float32\['B', 3, 32, 32\]"),
        ((3, 32, 32), np.float32, r"float32\[3, 32, 32\]"),
        ((2, 3, 32, 32), np.float64, r"is float64\["),
    ],
)
def test_onnx_runtime_names_an_input_of_the_wrong_shape_or_type(
    write_transformer: Callable[..., Path], shape: tuple[int, ...], kind: Any, message: str
) -> None:
    with open_engine(write_transformer()) as session, pytest.raises(BackendError, match=message):
        session.run({"image": np.zeros(shape, kind)})


@pytest.mark.parametrize("content", [b"", b"garbage" * 9])
def test_onnx_runtime_refuses_garbage_in_one_sentence_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(BackendError, match=r"refuses .*m\.onnx") as caught, open_engine(tmp_path / "m.onnx"):
        pytest.fail("it opened")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")


def test_an_onnx_file_that_was_changed_after_it_was_sealed_is_not_opened(
    write_transformer: Callable[..., Path],
) -> None:
    model = write_transformer()
    seal(model, "onnx", metadata={"tau": 0.5})
    with open_engine(model) as session:
        assert session.metadata == {"tau": "0.5"}
    model.write_bytes(model.read_bytes() + b"\x00")
    with pytest.raises(ArtifactError, match="sha256 differs"), open_engine(model):
        pytest.fail("it opened")


def test_onnx_runtime_threads_do_not_change_the_answer_beyond_rounding(
    write_transformer: Callable[..., Path], images: dict[str, Any]
) -> None:
    model = write_transformer()
    answers = []
    for threads in (1, 2):
        with OnnxRuntimeBackend(threads).open(model) as session:
            answers.append(session.run(images)["logits"])
    np.testing.assert_allclose(*answers, rtol=1e-5, atol=1e-6)


def test_an_optimized_engine_computes_what_its_model_computes(
    write_transformer: Callable[..., Path], tmp_path: Path, images: dict[str, Any]
) -> None:
    model = write_transformer()
    engine = OnnxRuntimeBackend().build(model, tmp_path / "a.engine", BuildOptions())
    with open_engine(model) as before, open_engine(engine.path) as after:
        np.testing.assert_allclose(after.run(images)["logits"], before.run(images)["logits"], rtol=1e-5, atol=1e-6)


def test_onnx_runtime_takes_no_workspace(write_transformer: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no workspace 4096"):
        OnnxRuntimeBackend().build(write_transformer(), tmp_path / "a", BuildOptions(workspace=4096))


def test_an_engine_of_one_provider_is_not_opened_on_another(tmp_path: Path) -> None:
    engine = OnnxRuntimeBackend().build(written(tmp_path / "m.onnx"), tmp_path / "a", BuildOptions()).path
    with (
        pytest.raises(BackendError, match="'onnxruntime', not by 'onnxruntime:cuda'"),
        open_engine(engine, "onnxruntime:cuda"),
    ):
        pytest.fail("it opened")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_onnx_runtime_without_a_provider_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, provider: str
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    name = f"onnxruntime:{provider}"
    available = backend(name).availability()
    assert not available.run
    assert "install onnxruntime-gpu" in available.reason
    with pytest.raises(BackendUnavailable, match=rf"cannot run on '{provider}': .*install onnxruntime-gpu"):
        open_engine(written(tmp_path / "m.onnx"), name).__enter__()


def test_onnx_runtime_does_not_run_on_a_provider_that_was_not_asked_for(tmp_path: Path) -> None:
    model = written(tmp_path / "m.onnx")
    on_the_cpu = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    require_provider(on_the_cpu, model, "cpu")
    with pytest.raises(BackendUnavailable, match=r"would run on CPUExecutionProvider, .*CUDAExecutionProvider: check"):
        require_provider(on_the_cpu, model, "cuda")


def test_onnx_runtime_builds_nothing_for_tensorrt(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"FILE\.onnx@onnxruntime:tensorrt"):
        backend("onnxruntime:tensorrt").build(written(tmp_path / "m.onnx"), tmp_path / "a", BuildOptions())


@pytest.mark.parametrize("transfers", [True, False])
def test_bound_buffers_give_what_a_run_gives(tmp_path: Path, transfers: bool) -> None:
    model = written(tmp_path / "m.onnx")
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    call = BoundCall(session, list(OUTPUTS), tiny_images(2), transfers=transfers, device="cpu")
    call()
    for output, right in reference(tiny_images(2)).items():
        np.testing.assert_allclose(call.outputs[output].numpy(), right, atol=1e-5)


def test_torch_builds_nothing_and_opens_no_engine(tmp_path: Path) -> None:
    model = written(tmp_path / "m.onnx")
    with pytest.raises(BackendError, match="torch runs checkpoints and builds no engine"):
        backend("torch").build(model, tmp_path / "a", BuildOptions())
    with pytest.raises(BackendError, match=r"torch:compile runs a checkpoint, and .*m\.onnx is none"):
        open_engine(model, "torch:compile")


def test_torch_on_a_machine_without_it_or_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_runtime, "gpu_description", lambda: None)
    assert backend("torch").availability().run
    assert "no NVIDIA GPU" in backend("torch:cuda").availability().reason
    with pytest.raises(BackendUnavailable, match="torch:cuda cannot run here: this machine has no NVIDIA GPU"):
        backend("torch:cuda").require()
    monkeypatch.setattr(torch_runtime, "find_spec", lambda name: None)
    assert not backend("torch").availability().run
    with pytest.raises(BackendUnavailable, match=r"torch is not installed: install lctr\[compile\]"):
        backend("torch").require()


def test_what_a_module_raises_is_one_sentence() -> None:
    class Broken(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("the first line.\nand many more")

    said = r"^broken failed in torch \(the first line\): check the feeds\.$"
    with (
        TorchBackend().session_from_module(Broken(), [IMAGE], OUTPUTS, {}, "broken") as session,
        pytest.raises(BackendError, match=said),
    ):
        session.run(tiny_images(1))


@pytest.mark.slow
def test_compiling_without_a_compiler_is_one_sentence(tmp_path: Path) -> None:
    """In a process of its own: torch remembers the compiler that it found."""
    code = (
        "from pathlib import Path; from tiny_localizer import images, opened\n"
        "with opened('torch:compile', Path('.')) as session: session.run(images(1))"
    )
    without = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    without["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=without, cwd=tmp_path
    )
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("toolchain.errors.BackendError: tiny failed in torch (")
    assert last.endswith("such as g++, or leave :compile out.")


def test_memory_lets_go_of_its_function() -> None:
    class Answer:
        def __call__(self, feeds: Feeds) -> dict[str, Any]:
            return dict(feeds)

    answer = Answer()
    session, alive = MemorySession(answer), weakref.ref(answer)
    del answer
    session.close()
    assert alive() is None


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        (None, "no NVIDIA GPU"),
        ("NVIDIA H100 80GB HBM3, 9.0, 570.1", r"not support NVIDIA H100 80GB HBM3 \(SM90\): .*--backend tensorrt\."),
        ("a line that nobody foresaw", "does not support"),
    ],
)
def test_rtx_says_why_it_does_not_run_here(monkeypatch: pytest.MonkeyPatch, gpu: str | None, reason: str) -> None:
    monkeypatch.setattr(tensorrt_api, "gpu_description", lambda: gpu)
    available = TensorRTRTXBackend().availability()
    assert available.build
    assert not available.run
    assert re.search(reason, available.reason)


def test_rtx_runs_on_a_gpu_that_it_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_api, "gpu_description", lambda: L4)
    assert TensorRTRTXBackend().availability() == Availability(build=True, run=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {},
            r"engine does not run here \(Error reading CUDA .+\): update the driver, or build it again with `lctr",
        ),
        (
            {"version": "1.0.0.1"},
            r"built for TensorRT-RTX 1\.0\.0\.1, and this is TensorRT-RTX 1\..* on NVIDIA L4 \(SM89\)",
        ),
    ],
)
def test_rtx_an_engine_is_refused_before_it_is_deserialized(
    monkeypatch: pytest.MonkeyPatch,
    write_transformer: Callable[..., Path],
    tmp_path: Path,
    change: dict[str, str],
    message: str,
) -> None:
    """The real runtime, which finds no driver behind the GPU that it is told of."""
    if gpu_description() is not None:
        pytest.skip("this machine has a driver")
    monkeypatch.setattr(tensorrt_api, "gpu_description", lambda: None)
    engine = TensorRTRTXBackend().build(write_transformer(), tmp_path / "a.engine", BuildOptions()).path
    record = json.loads(sidecar_of(engine).read_text())
    record["metadata"]["built_for"].update(change)
    sidecar_of(engine).write_text(json.dumps(record))
    monkeypatch.setattr(tensorrt_api, "gpu_description", lambda: L4)
    with pytest.raises(BackendError, match=message):
        TensorRTRTXBackend().open(engine)


def test_rtx_an_engine_for_other_targets_is_refused_with_the_command_for_this_gpu(
    monkeypatch: pytest.MonkeyPatch, write_transformer: Callable[..., Path], tmp_path: Path
) -> None:
    options = BuildOptions(targets=("sm80", "SM120"))
    engine = TensorRTRTXBackend().build(write_transformer(), tmp_path / "a.engine", options).path
    monkeypatch.setattr(tensorrt_api, "gpu_description", lambda: L4)
    command = f"`lctr build model.onnx --backend tensorrt-rtx --target sm89 -o {engine}`"
    with pytest.raises(BackendError, match=f"on SM80, SM120, and this is .*: build it again with {command}"):
        TensorRTRTXBackend().open(engine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"timing_cache": Path("k.cache")},
            r"TensorRT-RTX takes no timing cache k\.cache: it would accept one and not",
        ),
        ({"optimization_level": 5}, "no optimization level 5: its engines are the same at every level"),
        ({"version_compatible": True}, "no version compatibility: its engines run in the release that built them"),
        ({"hardware_compatibility": "ampere-plus"}, "no hardware compatibility 'ampere-plus': .* with --target"),
        ({"calibration_cache": Path("c.cache")}, r"no calibration cache c\.cache: .* Q/DQ with `lctr quantize`"),
    ],
)
def test_rtx_refuses_what_it_cannot_honour(
    write_transformer: Callable[..., Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        TensorRTRTXBackend().build(write_transformer(), tmp_path / "a", BuildOptions(**options))


def test_rtx_without_its_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, write_transformer: Callable[..., Path], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(tensorrt_api, "find_spec", lambda name: None)
    assert TensorRTRTXBackend().availability().build is False
    with pytest.raises(BackendUnavailable, match=r"install lctr\[rtx\]"):
        TensorRTRTXBackend().build(write_transformer(), tmp_path / "a", BuildOptions())


def test_rtx_a_dynamic_size_other_than_the_batch_needs_shapes(tmp_path: Path) -> None:
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", "N"]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", info[:1], info[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(
        UsageError, match=r"'x' of .*m\.onnx is \[-1, -1\], and no shape is stated for it: add it to --min"
    ):
        TensorRTRTXBackend().build(tmp_path / "m.onnx", tmp_path / "a", BuildOptions())
    options = BuildOptions(shapes={"x": ShapeProfile((1, 2), (2, 4), (4, 8))})
    assert TensorRTRTXBackend().build(tmp_path / "m.onnx", tmp_path / "a", options).parameters["shapes"] == {
        "x": [[1, 2], [2, 4], [4, 8]]
    }


def test_rtx_builds_in_silence(
    write_transformer: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    TensorRTRTXBackend().build(write_transformer(), tmp_path / "a", BuildOptions())
    with pytest.raises(BackendError):
        TensorRTRTXBackend().build(tmp_path / "model.onnx", tmp_path / "b", BuildOptions(workspace=1 << 10))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("initializer", "value", "node", "remedy"),
    [
        ("x16.zero", np.int8(3), "x16.q", "with zero point 0"),
        ("x16.scale", np.float32(0.02), "product", "one type; a scale has the type of what it quantizes"),
    ],
)
def test_rtx_says_what_to_do_about_q_dq_that_it_cannot_read(
    write_product: Callable[..., Path], tmp_path: Path, initializer: str, value: Any, node: str, remedy: str
) -> None:
    path = write_product(True, True)
    model = onnx.load(path)
    (tensor,) = (t for t in model.graph.initializer if t.name == initializer)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), initializer))
    onnx.save(model, path)
    with pytest.raises(BackendError, match=f"at node '{node}' .*: .*{re.escape(remedy)}") as caught:
        TensorRTRTXBackend().build(path, tmp_path / "a", BuildOptions())
    assert "\n" not in str(caught.value)


def test_rtx_names_the_node_it_cannot_read(tmp_path: Path) -> None:
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 4]) for n in "xy"]
    node = helper.make_node("Mystery", ["x"], ["y"], name="odd", domain="nobody")
    graph = helper.make_graph([node], "g", info[:1], info[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nobody", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(BackendError, match=r"cannot read .*m\.onnx at node 'odd'") as caught:
        TensorRTRTXBackend().build(tmp_path / "m.onnx", tmp_path / "a", BuildOptions())
    assert "\n" not in str(caught.value)


def test_a_build_is_recognized_until_something_that_shapes_it_changes(
    write_transformer: Callable[..., Path], tmp_path: Path
) -> None:
    model, output, options = write_transformer(), tmp_path / "a", BuildOptions(metadata={"tau": 0.3})
    assert built(model, output, "memory", options) is None
    artifact = MemoryBackend().build(model, output, options)
    assert built(model, output, "memory", options) == artifact
    assert built(model, output, "onnxruntime", options) is None
    assert built(model, output, "memory", BuildOptions(metadata={"tau": 0.4})) is None
    write_transformer(floats=("fc1",))
    assert built(model, output, "memory", options) is None


def test_a_memory_engine_of_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("[]")
    seal(tmp_path / "a", "engine", metadata={"backend": "memory"})
    with pytest.raises(BackendError, match="no engine of the memory backend"), open_engine(tmp_path / "a"):
        pytest.fail("it opened")
