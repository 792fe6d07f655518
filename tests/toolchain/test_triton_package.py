"""Model repositories as Triton meets them: parsed by its schema, and served."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from deployment import lctr
from google.protobuf import text_format
from packages import alone, engine_beside, files_in, localized, packaged, refused
from square_finder import SIZE
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from toolchain.artifacts import read_sidecar, sidecar_of


def config_of(package: Path, name: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse((package / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


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
