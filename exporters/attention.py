"""Attention as an ONNX graph spells it: which two products stand around one softmax, and what comes of their values."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import onnx

from exporters.constants import Constants

MOVES = {"Cast", "Identity", "Dropout", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
"""Operators that hand probabilities on as they are."""
SCALES = {*MOVES, "Mul", "Div", "Add", "Sub", "Where"}
"""What stands between scores and their softmax: scaling, masks and biases, too."""

BESIDE = [0, 2, 1, 3]
"""Permutation that brings the heads of each token together, (B, H, N, D) to (B, N, H, D)."""

Wanted = Callable[[onnx.NodeProto], bool]


@dataclass(frozen=True)
class Channels:
    """Where the channels of a tensor stand.

    Attributes:
        tensor: its name.
        by_head: (B, H, M, D), with the channels H * D; else the last axis holds them.
    """

    tensor: str
    by_head: bool = False


def attention_products(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Per attention, the product of queries and keys and the one of probabilities and values; in graph order.

    RPAM's hops are none: their probabilities are the second operand, or a mean over heads stands between.
    """
    constants = Constants(model)
    makers = {output: node for node in model.graph.node for output in node.output}

    def multiplies(node: onnx.NodeProto) -> bool:
        return node.op_type == "MatMul" and not any(constants.has(name) for name in node.input)

    found = []
    for mixing in model.graph.node:
        if not multiplies(mixing):
            continue
        softmax = _nearest(makers, mixing.input[0], MOVES, _is_softmax)
        scores = _nearest(makers, softmax.input[0], SCALES, multiplies) if softmax else None
        if scores:
            found.append((scores, mixing))
    return found


def averaged_values(model: onnx.ModelProto) -> dict[str, Channels]:
    """Tensors that attention makes -> the values that it averages in them, channel by channel."""
    found = {mixing.output[0]: Channels(mixing.input[1]) for _, mixing in attention_products(model)}
    beside: dict[str, Channels] = {}
    for node in model.graph.node:
        if node.op_type == "Transpose" and node.input[0] in found and _permutation(node) == BESIDE:
            beside[node.output[0]] = Channels(found[node.input[0]].tensor, by_head=True)
        elif node.op_type == "Reshape" and node.input[0] in beside:
            found[node.output[0]] = beside[node.input[0]]
    return found


def _permutation(node: onnx.NodeProto) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), [])


def _is_softmax(node: onnx.NodeProto) -> bool:
    return node.op_type == "Softmax"


def _nearest(
    makers: Mapping[str, onnx.NodeProto], tensor: str, through: Collection[str], wanted: Wanted
) -> onnx.NodeProto | None:
    """The first wanted node on the way back from a tensor, over `through` alone, first operands first."""
    pending, seen = [tensor], {tensor}
    while pending:
        node = makers.get(pending.pop())
        if node is None:
            continue
        if wanted(node):
            return node
        if node.op_type in through:
            pending += [name for name in reversed(node.input) if name not in seen]
            seen.update(node.input)
    return None
