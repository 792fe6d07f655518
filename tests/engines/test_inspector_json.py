"""The engine inspector's JSON, in the forms of 10.x and 11.x.

`CONVOLUTION` is a layer of NVIDIA's own sample data (TensorRT, tools/experimental/trt-engine-explorer, tests/inputs/
mobilenet.qat.onnx.engine.graph.json, Apache-2.0), without the fields that nobody reads here. The ends of an engine are
those of NVIDIA's page "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x".
"""

import json
from typing import Any

import pytest

from engines.compiled_products import inspection_from_dump
from engines.inspector_json import layer_dump_from_json
from engines.layer_dump import Layer, LayerDump, Tensor
from engines.products import Product

TEN = {"Bindings": ["input_0", "output_0"]}
ELEVEN = {
    "I/O Tensors": [
        {
            "Name": "input_0",
            "IOMode": "Input",
            "DataType": "Float",
            "Dimensions": [1, 3, 224, 224],
            "Location": "Device",
            "IsShapeInferenceIO": False,
            "ProfileInfo": [{"MinShape": [1, 3, 224, 224], "Format": "Row major linear FP32 format (kLINEAR)"}],
        }
    ]
}
CONVOLUTION = """{
  "Name": "features.2.conv.2.weight + QuantizeLinear_90 + Conv_94",
  "LayerType": "CaskConvolution",
  "Inputs": [
  {
    "Name": "399",
    "Location": "Device",
    "Dimensions": [1,96,56,56],
    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"
  }],
  "Outputs": [
  {
    "Name": "410",
    "Location": "Device",
    "Dimensions": [1,24,56,56],
    "Format/Datatype": "Thirty-two wide channel vectorized row major FP16 format"
  }],
  "ParameterType": "Convolution",
  "Kernel": [1,1],
  "Weights": {"Type": "Int8", "Count": 2304},
  "Bias": {"Type": "Float", "Count": 24},
  "TacticName": "turing_fp16_i8816cudnn_int8_128x128_ldg16_relu_small_nt_v1",
  "TacticValue": "0x4e4e6b8f37d71713"
}"""


def listing(*layers: Any, ends: dict[str, Any] = TEN) -> str:
    return json.dumps({"Layers": list(layers), **ends})


def tensor(name: str, shape: list[int], **type_: str) -> dict[str, Any]:
    return {"Name": name, "Dimensions": shape, **type_}


def product(name: str, kind: str = "linear", **how: Any) -> Product:
    return Product(name, "MatMul", f"{name}.out", kind, (True, True), asked="int8", **how)


def test_a_convolution_of_nvidias_sample_is_read() -> None:
    dump = layer_dump_from_json(f'{{"Layers": [{CONVOLUTION}], "Bindings": ["input1"]}}')
    name = "features.2.conv.2.weight + QuantizeLinear_90 + Conv_94"
    weights, bias = Tensor((2304,), "int8", f"{name} Weights"), Tensor((24,), "fp32", f"{name} Bias")
    assert dump == LayerDump(
        (
            Layer(
                name=name,
                type="correlation",
                inputs=(Tensor((1, 96, 56, 56), "int8", "399"),),
                constants=(weights, bias),
                outputs=(Tensor((1, 24, 56, 56), "fp16", "410"),),
                tactic="turing_fp16_i8816cudnn_int8_128x128_ldg16_relu_small_nt_v1",
                origins=("features.2.conv.2.weight", "QuantizeLinear_90", "Conv_94"),
            ),
        )
    )
    found = inspection_from_dump("tensorrt", [product("Conv_94", "convolution")], dump)
    assert [p.type for p in found.products] == ["int8"]
    assert found.weight_bytes == {"int8": 2304, "fp32": 4 * 24}
    assert found.activation_bytes == 2 * 24 * 56 * 56


@pytest.mark.parametrize(
    ("ends", "int8", "half"),
    [
        (TEN, {"Format/Datatype": "Int8"}, {"Format/Datatype": "Half"}),
        (
            ELEVEN,
            {"Format": "Row major linear", "Datatype": "Int8"},
            {"Format": "Row major linear", "Datatype": "Half"},
        ),
        (
            ELEVEN,
            {"Format": "Row major linear", "DataType": "Int8"},
            {"Format": "Row major linear", "DataType": "Half"},
        ),
    ],
)
def test_both_forms_tell_the_same(ends: dict[str, Any], int8: dict[str, str], half: dict[str, str]) -> None:
    gemm = {
        "Name": "/fc1/MatMul_myl0_7",
        "LayerType": "gemm",
        "Inputs": [tensor("x.q", [8, 64], **int8)],
        "Constants": [tensor("w.q", [64, 256], **int8), tensor("w.scale", [256], **half)],
        "Outputs": [tensor("y", [8, 256], **half)],
        "TacticName": "sm89_xmma_gemm_i8i8_i8i32_f32",
        "StreamId": 0,
        "Metadata": "[ONNX Layer: /fc1/MatMul]\x1f[ONNX Layer: x.dq]",
    }
    attention = {
        "Name": "_gemm_mha_v2_myl0_4",
        "LayerType": "kgen",
        "Inputs": [tensor(name, [8, 6, 64], **half) for name in "qkv"],
        "Outputs": [tensor("context", [8, 6, 64], **half)],
        "TacticName": "_gemm_mha_v2",
        "Metadata": "[ONNX Layer: qk]\x1e[ONNX Layer: softmax]\x1e[ONNX Layer: pv]",
    }
    dump = layer_dump_from_json(listing(gemm, attention, ends=ends))
    assert dump is not None
    pair = {"kind": "attention", "softmax": "softmax", "softmax_readers": 1}
    found = inspection_from_dump(
        "tensorrt", [product("/fc1/MatMul"), product("qk", **pair), product("pv", **pair)], dump
    )
    assert [(p.type, p.kernel, p.fused) for p in found.products] == [
        ("int8", "/fc1/MatMul", False),
        ("fp16", "_gemm_mha_v2", True),
        ("fp16", "_gemm_mha_v2", True),
    ]
    assert (found.fused_attention, found.layers) == (1, 2)
    assert found.weight_bytes == {"int8": 64 * 256, "fp16": 2 * 256}
    assert found.untold == ()


def test_weights_that_are_not_listed_are_not_counted_as_none() -> None:
    gemm = {
        "Name": "fc",
        "LayerType": "gemm",
        "Inputs": [tensor("x", [1, 4], Datatype="Int8"), tensor("w", [4, 4], Datatype="Int8")],
        "Outputs": [tensor("y", [1, 4], Datatype="Float")],
        "Metadata": "[ONNX Layer: fc]",
    }
    found = inspection_from_dump("tensorrt", [product("fc")], layer_dump_from_json(listing(gemm)))
    assert [p.type for p in found.products] == ["int8"]
    assert (found.weight_bytes, found.activation_bytes) == (None, 16)
    assert found.untold == ("weight bytes: the listing names no weights",)


def test_a_layer_that_cannot_be_read_is_kept_and_said() -> None:
    dump = layer_dump_from_json(listing({"Name": "new", "LayerType": "gemm"}))
    assert dump is not None
    assert dump.layers == ()
    assert [json.loads(line)["Name"] for line in dump.unread] == ["new"]
    (found,) = inspection_from_dump("tensorrt", [product("fc")], dump).products
    assert found.loss is not None
    assert "1 of its lines could not be read" in found.loss.reason


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"Layers": "none"}', '{"Layers": ["Conv_1", "Conv_2"], "Bindings": []}', "{}"]
)
def test_what_lists_no_layers_or_names_alone_is_no_listing(text: str) -> None:
    assert layer_dump_from_json(text) is None
