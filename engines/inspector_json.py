"""What TensorRT's engine inspector lists as JSON, as the data that a builder's log is read into.

    {"Layers": [{"Name": "fc1/MatMul_myl0_2", "LayerType": "gemm", "Inputs": [{"Name": "x", "Dimensions": [-1,64],
    "Format/Datatype": "Int8"}], "Outputs": [...], "TacticName": "...", "Metadata": "[ONNX Layer: fc1/MatMul]"}],
    "Bindings": ["image", "logits"]}

10.x gives a tensor's layout and type in one field, `Format/Datatype`, and names inputs and outputs under `Bindings`;
11.x has a field of its own for the type, and `I/O Tensors` (NVIDIA, "Migrating IEngineInspector Usage from TensorRT
10.x to 11.x"). What is here is the same in both. An engine that was built without detailed verbosity lists names alone.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from engines.layer_dump import COUNTER, ORIGIN, TYPES, Layer, LayerDump, Tensor

SEPARATORS = re.compile("[\x1e\x1f]")
"""Between the ONNX nodes of a layer: ASCII's record separator where layers were fused, its unit separator elsewhere."""
TYPE_FIELDS = ("Datatype", "DataType", "Format/Datatype")
WORDS = {"FP32": "fp32", "FP16": "fp16", "BF16": "bf16", **TYPES}
"""How types are called inside a layout such as `Thirty-two wide channel vectorized row major Int8 format`."""
TYPE_WORD = re.compile(rf"\b({'|'.join(sorted(WORDS, key=len, reverse=True))})\b")
KINDS = {"Convolution": "correlation", "MatrixMultiply": "gemm", "fusion": "runtime_fusion"}
"""Parameter or layer type -> what a builder's log calls such a layer."""
MULTIPLYING = frozenset({"gemm", "correlation", "runtime_fusion"})


def layer_dump_from_json(text: str) -> LayerDump | None:
    """All layers of an engine, in execution order; None where the text lists no layers, or names alone."""
    try:
        listed = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(listed, list) or any(isinstance(layer, str) for layer in listed):
        return None
    layers, unread = [], []
    for record in listed:
        try:
            layers.append(_layer(record))
        except (KeyError, TypeError, AttributeError, ValueError):
            unread.append(json.dumps(record))
    products = [r for r in listed if isinstance(r, dict) and _type(r) in MULTIPLYING]
    told = all("Constants" in r or "Weights" in r for r in products)
    return LayerDump(tuple(layers), tuple(unread), constants_told=told)


def _type(record: Mapping[str, Any]) -> str:
    kind = record.get("LayerType", "")
    return str(KINDS.get(record.get("ParameterType", kind)) or KINDS.get(kind, kind))


def _layer(record: Mapping[str, Any]) -> Layer:
    return Layer(
        name=COUNTER.sub("", record["Name"]),
        type=_type(record),
        inputs=_tensors(record["Inputs"]),
        constants=(*_tensors(record.get("Constants", ())), *_parameters(record)),
        outputs=_tensors(record["Outputs"]),
        tactic=record.get("TacticName", ""),
        origins=_origins(record),
    )


def _tensors(listed: Any) -> tuple[Tensor, ...]:
    return tuple(Tensor(tuple(t["Dimensions"]), _type_of(t), t["Name"]) for t in listed)


def _type_of(tensor: Mapping[str, Any]) -> str:
    told = next(str(tensor[field]) for field in TYPE_FIELDS if field in tensor)
    found = TYPE_WORD.search(told)
    return WORDS[found[1]] if found else told


def _parameters(record: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Weights and bias of a layer that states their type and number only."""
    stated = ((field, record[field]) for field in ("Weights", "Bias") if field in record)
    return tuple(
        Tensor((entry["Count"],), TYPES.get(entry["Type"], entry["Type"]), f"{record['Name']} {field}")
        for field, entry in stated
        if entry["Count"]
    )


def _origins(record: Mapping[str, Any]) -> tuple[str, ...]:
    if "Metadata" not in record:
        # Older listings tell the nodes by the layer's name alone.
        return tuple(record["Name"].split(" + "))
    marks = SEPARATORS.split(record["Metadata"])
    return tuple(m.removeprefix(ORIGIN).removesuffix("]") for m in marks if m.startswith(ORIGIN))
