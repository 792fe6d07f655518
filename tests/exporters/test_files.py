import onnx
import pytest
from onnx import TensorProto, helper

from exporters.files import metadata_of, read_onnx, write_onnx
from toolchain.errors import ModelError


@pytest.fixture
def model():
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], "relu")],
        "g",
        [info("x", TensorProto.FLOAT, [1])],
        [info("y", TensorProto.FLOAT, [1])],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    built.metadata_props.add(key="tau", value="0.1")
    return built


def test_a_model_comes_back_with_its_metadata(model, tmp_path):
    write_onnx(model, tmp_path / "m.onnx")
    found = read_onnx(tmp_path / "m.onnx")
    assert found == model
    assert metadata_of(found) == {"tau": "0.1"}


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match=r"none.onnx does not exist: check the path"):
        read_onnx(tmp_path / "none.onnx")


@pytest.mark.parametrize("length", [0, 1, 20, 60])
def test_a_truncated_file(model, tmp_path, length):
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString()[:length])
    with pytest.raises(ModelError, match=r"m.onnx is no whole ONNX model \(.+\): export it again"):
        read_onnx(tmp_path / "m.onnx")


def test_a_graph_that_is_not_valid(model, tmp_path):
    model.graph.node[0].input[0] = "nobody makes this"
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(ModelError, match="is no whole ONNX model"):
        read_onnx(tmp_path / "m.onnx")
