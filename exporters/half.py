"""What a float16 graph computes in float16, as the same numbers in the float32 graph of the same module.

Two exports of one module differ in their Casts and in the names of some tensors, never in the names of the other nodes
(rule 2 of `exporters.torch_export`). So nodes are paired by name, and tensors by the nodes that make them.
"""

from dataclasses import dataclass

import onnx
from onnx import TensorProto

from exporters.constants import MOVEMENT
from exporters.shape_inference import inferred
from toolchain.errors import ModelError

MOVES = (MOVEMENT - {"Cast"}) | {"Expand", "Gather", "Pad"}
"""Operators whose output holds nothing that their input does not."""


@dataclass(frozen=True)
class HalfValue:
    """One output of a node, in float16.

    Attributes:
        node: name in the float16 graph.
        tensor: the same numbers in the float32 graph.
    """

    node: str
    tensor: str


def half_values(single: onnx.ModelProto, half: onnx.ModelProto) -> tuple[HalfValue, ...]:
    """What nodes compute in float16, or turn into it, in graph order; what they only move is not repeated.

    Args:
        single: the float32 graph of a module.
        half: its float16 graph, with recorded types as torch exports them.

    Raises:
        ModelError: the graphs are not of one module.
    """
    paired = {node.name: node for node in single.graph.node}
    makers = {output: node for node in half.graph.node for output in node.output}
    graph = inferred(half)
    in_half = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }

    def in_single(tensor: str) -> str:
        maker = makers.get(tensor)
        if maker is None:
            return tensor
        if maker.op_type == "Cast":
            return in_single(maker.input[0])
        if maker.name not in paired:
            raise ModelError(f"The float32 graph has no node '{maker.name}': export both graphs from one model.")
        return str(paired[maker.name].output[list(maker.output).index(tensor)])

    return tuple(
        HalfValue(node.name, in_single(output))
        for node in half.graph.node
        if node.op_type not in MOVES
        for output in node.output
        if output in in_half
    )
