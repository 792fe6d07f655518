"""The wiring reader against the `onnx` package, and the classification of products on a graph that fits a screen."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.onnx_graph import Graph, Node, graph_from_onnx
from engines.products import Product, products_of
from toolchain.errors import ModelError


def test_it_reads_what_the_onnx_package_reads(write_transformer: Callable[..., Path]) -> None:
    path = write_transformer(precision="fp16")
    reference = onnx.load(path).graph
    graph = graph_from_onnx(path)
    assert graph.initializers == {i.name for i in reference.initializer}
    assert graph.nodes == tuple(Node(n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in reference.node)


def test_it_reads_the_types_that_the_file_states(write_transformer: Callable[..., Path]) -> None:
    path = write_transformer(precision="fp16", floats=("fc2",))
    types = graph_from_onnx(path).types
    stated = {"image": "fp32", "logits": "fp32", "image16": "fp16", "fc2.weight": "fp16", "patch.weight.zero": "int8"}
    assert {name: types.get(name) for name in stated} == stated
    assert "tokens" not in types  # int64
    assert "q.product" not in types  # nobody annotated it


def test_products_of_the_transformer(write_transformer: Callable[..., Path]) -> None:
    products = {p.name: p for p in products_of(graph_from_onnx(write_transformer(floats=("fc2",), attention_map=True)))}
    assert list(products) == ["patch", "q", "k", "v", "qk", "pv", "proj", "fc1", "fc2", "head"]
    both, none = (True, True), (False, False)
    assert products["patch"] == Product("patch", "Conv", "patch.out", "convolution", both, shared_by=1, asked="int8")
    assert [products[name].shared_by for name in ("q", "k", "v", "proj", "fc1")] == [3, 3, 3, 1, 1]
    assert products["fc2"] == Product("fc2", "MatMul", "fc2.product", "linear", none, asked="fp32")
    assert products["head"] == Product("head", "Gemm", "head.out", "linear", both, shared_by=1, asked="int8")
    pair = {"softmax": "softmax", "softmax_readers": 2, "asked": "fp32"}
    assert products["qk"] == Product("qk", "MatMul", "scores", "attention", none, **pair)
    # Between the mixed heads and the Q of `proj` there is only a change of layout.
    assert products["pv"] == Product("pv", "MatMul", "mixed", "attention", none, output_quantized=True, **pair)


def test_what_the_file_asks_for_follows_its_types_and_its_q_dq(write_transformer: Callable[..., Path]) -> None:
    path = write_transformer(precision="fp16", floats=("fc2",), attention_q_dq=("q", "k"))
    asked = {p.name: p.asked for p in products_of(graph_from_onnx(path))}
    assert {name for name, type_ in asked.items() if type_ == "fp16"} == {"fc2", "pv"}
    assert {type_ for name, type_ in asked.items() if name not in ("fc2", "pv")} == {"int8"}


def test_a_type_that_the_file_does_not_tell_is_unknown() -> None:
    nodes = (("Shape", "x", "s"), ("MatMul", "s w", "a"), ("MatMul", "x h", "b"), ("MatMul", "x w", "c"))
    made = graph(*nodes)
    typed = Graph(made.nodes, made.initializers, types={"x": "fp32", "w": "fp32", "h": "fp16"})
    assert {p.name: p.asked for p in products_of(typed)} == {"a": "unknown", "b": "unknown", "c": "fp32"}


SCALED = (("MatMul", "q k", "scores"), ("Mul", "scores w", "scaled"), ("Add", "mask scaled", "masked"))
P = (("Softmax", "masked", "p"),)


@pytest.mark.parametrize(
    ("behind", "attention"),
    [
        # The usual form, with whatever moves or casts the probabilities without mixing them.
        ((*P, ("MatMul", "p v", "out")), {"scores", "out"}),
        ((*P, ("Cast", "p", "h"), ("Reshape", "h", "r"), ("MatMul", "r v", "out")), {"scores", "out"}),
        # RPAM: a softmax that nothing multiplies from the left, whose rows are averaged, or that stands on the right.
        (P, set()),
        ((*P, ("ReduceMean", "p", "m"), ("MatMul", "m v", "out")), set()),
        ((*P, ("MatMul", "v p", "out")), set()),
        # Pooling by a softmax of something that is no product, and products without any softmax.
        ((("Softmax", "y", "p"), ("MatMul", "p v", "out")), set()),
        ((("Sigmoid", "masked", "p"), ("MatMul", "p v", "out")), set()),
    ],
)
def test_attention_is_two_products_with_a_softmax_between(
    behind: tuple[tuple[str, str, str], ...], attention: set[str]
) -> None:
    found = products_of(graph(*SCALED, *behind))
    assert {p.name for p in found if p.kind == "attention"} == attention
    assert {p.kind for p in found if p.name not in attention} <= {"activation product"}
    assert {p.softmax for p in found if p.kind == "attention"} <= {"p"}


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
            ("MatMul", "x x", "square"),
        )
    )
    assert found == (
        # The reshaped activation is read by three.
        Product("linear", "MatMul", "linear", "linear", (True, True), shared_by=3, asked="int8"),
        Product("left", "MatMul", "left", "linear", (True, True), shared_by=3, asked="int8"),
        Product("square", "MatMul", "square", "activation product", (True, True), shared_by=3, asked="int8"),
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
