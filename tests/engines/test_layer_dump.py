"""The parser against a recorded log of TensorRT-RTX 1.7.1 (the test transformer in fp16, `fc2` without Q/DQ)."""

from pathlib import Path
from typing import Any

import pytest

from engines.compiled_products import inspection_from_dump
from engines.inspection import ProductReport
from engines.layer_dump import Layer, LayerDump, Tensor, layer_dump_from_log
from engines.losses import FLOAT_WEIGHT
from engines.products import Product

LOG = (Path(__file__).parent / "data" / "builder_log.txt").read_text()


@pytest.fixture(scope="module")
def layers() -> dict[str, Layer]:
    dump = layer_dump_from_log(LOG)
    assert dump is not None
    assert dump.unread == ()
    return {layer.name: layer for layer in dump.layers}


def product(name: str, kind: str = "linear", quantized: tuple[bool, bool] = (True, True), **how: Any) -> Product:
    op = "Conv" if kind == "convolution" else "MatMul"
    return Product(name, op, f"{name}.out", kind, quantized, asked="int8" if all(quantized) else "fp16", **how)


def attention(qk: tuple[bool, bool], pv: tuple[bool, bool], readers: int = 1) -> list[Product]:
    between = {"softmax": "softmax", "softmax_readers": readers}
    return [product("qk", "attention", qk, **between), product("pv", "attention", pv, **between)]


def report(products: list[Product], layers: list[Layer]) -> tuple[ProductReport, ...]:
    return inspection_from_dump("tensorrt-rtx", products, LayerDump(tuple(layers))).products


def test_every_layer_of_the_listing_is_read_and_nothing_after_it(layers: dict[str, Layer]) -> None:
    assert list(layers) == ["__mye3714_0", "patch", "v+k+q", "_gemm_mha_v2", "fc2", "head"]
    assert [layer.type for layer in layers.values()] == ["shape_call", "correlation", "gemm", "kgen", "gemm", "gemm"]


def test_operands_of_a_layer(layers: dict[str, Layer]) -> None:
    assert layers["v+k+q"].inputs == (Tensor((-1, 32), "int8", "norm1.q.1_myl0"),)
    assert layers["v+k+q"].constants[0] == Tensor((32, 96), "int8", "__mye12925_dconst_myl0")
    assert layers["v+k+q"].outputs == (Tensor((-1, 96), "fp16", "__mye12691_myl0"),)
    assert layers["fc2"].inputs == (Tensor((-1, 128), "fp16", "__mye11360_28_myl0"),)
    assert layers["__mye3714_0"].inputs == ()


def test_origins_of_a_layer(layers: dict[str, Layer]) -> None:
    assert layers["fc2"].origins == ("fc2",)
    assert layers["_gemm_mha_v2"].origins == ("context.q", "pv", "softmax", "qk")
    assert layers["__mye3714_0"].origins == ()


def test_a_name_may_hold_separators() -> None:
    name = "fc+a_myl0_3, LayerType: x [q]/MatMul"
    tensor = (
        "{ Name: " + name + "_dq, Dimensions: [2,3], Strides: [3,1], StrideOrder: [1,0], Datatype: Int8, Format: F }"
    )
    line = f"Name: {name}_myl0_2, LayerType: gemm, Inputs: [ {tensor}], Constants: [], Outputs: [], TacticName: t, "
    dump = layer_dump_from_log(f"Layers:\n{line}StreamId: 0, Metadata: [ONNX Layer: {name}]\x1f[ONNX Layer: x]\n\n")
    assert dump == LayerDump((Layer(name, "gemm", (Tensor((2, 3), "int8", f"{name}_dq"),), (), (), "t", (name, "x")),))


def test_streams_that_wait_for_one_another_are_read_and_are_no_kernels() -> None:
    nothing = "Inputs: [], Constants: [], Outputs: [], TacticName: "
    lines = [
        f"Name: __mye{k}_myl0_{k}, LayerType: {type_}, {nothing}, StreamId: {k}, EventId: 1, Metadata: "
        for k, type_ in enumerate(("signal", "wait"))
    ]
    dump = layer_dump_from_log("\n".join(["Layers:", *lines, "", ""]))
    assert dump is not None
    assert [layer.type for layer in dump.layers] == ["signal", "wait"]
    assert (dump.kernels, dump.unread) == ((), ())


def test_a_log_without_listing_is_none_and_an_unreadable_line_is_kept() -> None:
    assert layer_dump_from_log("Name: a, LayerType: gemm") is None
    assert layer_dump_from_log("Layers:\nsomething new\n\n") == LayerDump((), ("something new",))


def test_products_by_rule_from_the_recorded_log(layers: dict[str, Layer]) -> None:
    products = [
        product("patch", "convolution"),
        *(product(name) for name in "qkv"),
        *attention((False, False), (False, False)),
        product("fc2", quantized=(False, False)),
        product("head"),
    ]
    inspection = inspection_from_dump("tensorrt-rtx", products, layer_dump_from_log(LOG))
    types = ["int8", "int8", "int8", "int8", "fp16", "fp16", "fp16", "int8"]
    assert [p.type for p in inspection.products] == types
    assert inspection.products[1].kernel == "v+k+q"
    assert [p.name for p in inspection.losses] == ["fc2"]
    assert (inspection.layers, inspection.fused_attention) == (5, 1)
    assert inspection.counts == {"attention": {"fp16": 2}, "convolution": {"int8": 1}, "linear": {"fp16": 1, "int8": 4}}


def tensors(*types: str) -> tuple[Tensor, ...]:
    return tuple(Tensor((64, 64), t) for t in types)


@pytest.mark.parametrize(
    ("type_", "name", "inputs", "constants", "output", "answer"),
    [
        ("gemm", "fc", ["int8"], ["int8"], "fp32", "int8"),
        ("gemm", "fc", ["fp16"], ["int8"], "fp16", "unknown"),
        ("gemm", "fc", ["int8", "int8"], [], "fp16", "int8"),
        ("runtime_fusion", "__myl_CastMulCastFc", ["fp16"], ["fp16", "int8"], "fp16", "fp16"),
        ("runtime_fusion", "__myl_CastMulFc", ["int8"], ["fp32"], "fp32", "fp32"),
        ("runtime_fusion", "__myl_FcAddDiv", ["fp16"], ["fp16", "fp16"], "fp16", "fp16"),
        ("runtime_fusion", "__myl_MulMinMaxRounCastFc", ["fp16"], ["int8"], "fp16", "unknown"),
        ("kgen", "__myl_ReshMulSum", ["fp16"], ["fp16"], "fp16", "fp16"),
        ("kgen", "__myl_ReshMulSum", ["int8"], ["fp16"], "fp16", "unknown"),
        ("kgen", "__myl_MulAdd", ["fp16"], ["fp16"], "fp16", "unknown"),
        ("kgen", "__myl_CastGathSlicSlicMulMulAdd", ["fp16", "Int32"], ["fp16"], "fp16", "fp16"),
        ("kgen", "__myl_CastReshMulReshSlicMulMulAddEtc", ["fp32"], ["int8"], "fp32", "fp32"),
        ("kgen", "__myl_SlicSlicMulMulAdd", ["fp32"], ["int8"], "fp32", "unknown"),
        ("kgen", "__myl_CastSlicMulMulAdd", ["fp16"], ["fp32"], "fp16", "unknown"),
    ],
)
def test_the_type_of_a_product_follows_the_rules_or_is_unknown(
    type_: str, name: str, inputs: list[str], constants: list[str], output: str, answer: str
) -> None:
    layer = Layer(name, type_, tensors(*inputs), tensors(*constants), tensors(output), "", ("fc",))
    (found,) = report([product("fc")], [layer])
    assert found.type == answer
    assert (found.loss is None) == (answer == "int8")


def test_what_cannot_be_found_is_unknown_with_the_reason() -> None:
    other = Layer("__myl_Add", "kgen", (), (), (), "", ("fc", "bias"))
    assert [r.loss.reason for r in report([product("fc")], []) if r.loss] == [
        "the builder's layer listing does not name it"
    ]
    assert [r.loss.reason for r in report([product("fc")], [other]) if r.loss] == [
        "the listing names it only in __myl_Add"
    ]
    (found,) = inspection_from_dump("tensorrt-rtx", [product("fc")], None).products
    assert found.type == "unknown"
    assert found.loss is not None
    assert found.loss.reason == "the builder logged no layer listing"


@pytest.mark.parametrize(
    ("qk", "pv", "type_", "readers", "reason"),
    [
        ((True, True), (False, False), "fp16", 1, "not fused: Q/DQ on some of q, k, v and softmax only"),
        ((False, False), (False, False), "fp32", 1, "not fused: the product is done in fp32"),
        (
            *((True, True), (False, False), "fp32", 2),
            "not fused: 2 nodes read the softmax, and Q/DQ on some of q, k, v and softmax only, "
            "and the product is done in fp32",
        ),
        ((False, False), (False, False), "fp16", 2, "not fused: 2 nodes read the softmax"),
        ((False, False), (False, False), "fp16", 1, "not fused; the builder gives no reason"),
    ],
)
def test_why_attention_was_not_fused(
    qk: tuple[bool, bool], pv: tuple[bool, bool], type_: str, readers: int, reason: str
) -> None:
    products = attention(qk, pv, readers)
    layers = [Layer(n, "gemm", tensors(type_, type_), (), tensors(type_), "", (n,)) for n in ("qk", "pv")]
    assert [r.loss.reason for r in report(products, layers) if r.loss] == [reason, reason]


def test_a_weight_that_is_stored_as_int8_is_blamed_when_its_product_is_not_int8() -> None:
    layer = Layer("__myl_CastMulFc", "runtime_fusion", tensors("int8"), tensors("fp16"), tensors("fp16"), "", ("qkv",))
    (found,) = report([product("qkv", stored_int8=True)], [layer])
    assert found.loss is not None
    assert found.loss.reason.endswith("the weight is stored as INT8")
    assert found.loss.rule == FLOAT_WEIGHT


def layer_of(constants: tuple[Tensor, ...], outputs: tuple[Tensor, ...], type_: str = "gemm") -> Layer:
    return Layer("fc", type_, (), constants, outputs, "", ())


def test_bytes_are_added_up_and_no_tensor_counts_twice() -> None:
    weight, scale = Tensor((32, 96), "int8", "w"), Tensor((96,), "fp16", "s")
    first = layer_of((weight, scale), (Tensor((2, 96), "fp16", "y"),))
    second = layer_of((weight,), (Tensor((2, 96), "fp16", "y"), Tensor((), "fp32", "z")))
    host = layer_of((Tensor((9,), "fp32", "h"),), (Tensor((9,), "fp32", "i"),), "shape_call")
    found = inspection_from_dump("tensorrt-rtx", [], LayerDump((first, second, host)))
    assert found.weight_bytes == {"int8": 32 * 96, "fp16": 2 * 96}
    assert found.activation_bytes == 2 * 2 * 96 + 4
    assert (found.layers, found.untold) == (2, ())


@pytest.mark.parametrize(
    ("dump", "weights", "reason"),
    [
        (None, None, "weight and activation bytes: the builder logged no layer listing"),
        (LayerDump((), ("new",)), None, "weight and activation bytes: 1 lines of the listing could not be read"),
        (
            LayerDump((layer_of((Tensor((4,), "Int4", "w"),), ()),)),
            None,
            "weight and activation bytes: the listing has elements of type Int4",
        ),
        (
            LayerDump((layer_of((Tensor((4,), "int8", "w"),), (Tensor((-1, 2), "fp16", "y"),)),)),
            {"int8": 4},
            "activation bytes: 1 of 1 tensors have a dynamic size; build for one batch size to know",
        ),
    ],
)
def test_bytes_that_are_not_known_are_missing_and_the_reason_is_told(
    dump: LayerDump | None, weights: dict[str, int] | None, reason: str
) -> None:
    found = inspection_from_dump("tensorrt-rtx", [], dump)
    assert (found.weight_bytes, found.activation_bytes, found.untold) == (weights, None, (reason,))
    assert found.totals["activation_bytes"] is None
