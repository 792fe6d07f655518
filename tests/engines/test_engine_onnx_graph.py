"""The wiring reader against the `onnx` package, and the classification of products on a graph that fits a screen."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.onnx_graph import Graph, Node, Product, graph_from_onnx, products_of
from toolchain.errors import ModelError


def test_it_reads_what_the_onnx_package_reads(write_transformer: Callable[..., Path]) -> None:
    path = write_transformer(precision="fp16")
    reference = onnx.load(path).graph
    graph = graph_from_onnx(path)
    assert graph.initializers == {i.name for i in reference.initializer}
    assert graph.nodes == tuple(Node(n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in reference.node)


def test_products_of_the_transformer(write_transformer: Callable[..., Path]) -> None:
    products = {p.name: p for p in products_of(graph_from_onnx(write_transformer(floats=("fc2",), attention_map=True)))}
    assert list(products) == ["patch", "q", "k", "v", "qk", "pv", "proj", "fc1", "fc2", "head"]
    assert products["patch"] == Product("patch", "Conv", "patch.out", "convolution", (True, True), shared_by=1)
    assert [products[name].shared_by for name in ("q", "k", "v", "proj", "fc1")] == [3, 3, 3, 1, 1]
    assert products["fc2"] == Product("fc2", "MatMul", "fc2.product", "linear", (False, False))
    assert products["head"] == Product("head", "Gemm", "head.out", "linear", (True, True), shared_by=1)
    assert products["qk"] == Product("qk", "MatMul", "scores", "attention", (False, False))
    # Between the mixed heads and the Q of `proj` there is only a change of layout.
    assert products["pv"] == Product("pv", "MatMul", "mixed", "attention", (False, False), True, softmax_readers=2)


def graph(*nodes: tuple[str, str, str]) -> Graph:
    """Nodes as (operator, inputs, output); `w` is an initializer."""
    made = tuple(Node(output, op, tuple(inputs.split()), (output,)) for op, inputs, output in nodes)
    return Graph(made, frozenset({"w"}))


def test_a_weight_may_reach_its_product_through_anything_constant() -> None:
    found = products_of(
        graph(
            ("QuantizeLinear", "w", "wq"),
            ("DequantizeLinear", "wq", "wd"),
            ("Transpose", "wd", "wt"),
            ("DequantizeLinear", "xq", "xd"),
            ("Reshape", "xd", "x"),
            ("MatMul", "x wt", "linear"),
            ("MatMul", "wt x", "left"),
            ("MatMul", "w wt", "folded"),
            ("MatMul", "x x", "attention"),
        )
    )
    assert found == (
        # The reshaped activation is read by three.
        Product("linear", "MatMul", "linear", "linear", (True, True), shared_by=3),
        Product("left", "MatMul", "left", "linear", (True, True), shared_by=3),
        Product("attention", "MatMul", "attention", "attention", (True, True), shared_by=3),
    )


def test_a_weight_stored_as_int8_is_told_from_one_that_is_quantized() -> None:
    quantize = ("QuantizeLinear", "w", "wq")
    stored, folded = (
        products_of(graph(*start, ("DequantizeLinear", weight, "d"), ("Transpose", "d", "t"), ("MatMul", "x t", "y")))[
            0
        ]
        for start, weight in (((), "w"), ((quantize,), "wq"))
    )
    assert stored.stored_int8
    assert not folded.stored_int8


def test_a_quantized_output_is_seen_past_the_bias() -> None:
    (found,) = products_of(graph(("MatMul", "x w", "y"), ("Add", "y w", "z"), ("QuantizeLinear", "z", "q")))
    assert found.output_quantized


def test_a_shared_name_is_marked(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], [out], name=name) for out, name in (("a", "n"), ("b", "n"), ("c", ""))
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in ("x", "a", "b", "c")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(np.ones((2, 2), np.float32), "w")])
    )
    onnx.save(model, tmp_path / "m.onnx")
    products = products_of(graph_from_onnx(tmp_path / "m.onnx"))
    assert [(p.name, p.unique) for p in products] == [("n", False), ("n", False), ("node_of_c", True)]


def test_every_truncation_is_noticed(write_product: Callable[..., Path]) -> None:
    path = write_product(True, True)
    model = onnx.load(path)
    # Behind the graph stand the opset, without which a model is not whole, and properties, which nothing here needs.
    del model.metadata_props[:]
    whole = model.SerializeToString()
    for size in [*range(400), *range(400, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="export it again"):
            graph_from_onnx(path)
    path.write_bytes(whole)
    assert graph_from_onnx(path).nodes


def test_a_model_without_nodes_is_refused(tmp_path: Path) -> None:
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="holds no nodes"):
        graph_from_onnx(tmp_path / "m.onnx")
