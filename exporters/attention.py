"""Attention as an ONNX graph spells it: which two products stand around one softmax."""

from collections.abc import Callable, Collection, Mapping

import onnx

MOVES = {"Cast", "Identity", "Dropout", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
"""Operators that hand probabilities on as they are."""
SCALES = {*MOVES, "Mul", "Div", "Add", "Sub", "Where"}
"""What stands between scores and their softmax: scaling, masks and biases, too."""

Wanted = Callable[[onnx.NodeProto], bool]


def attention_products(model: onnx.ModelProto, multiplies: Wanted) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Per attention, the product of queries and keys and the one of probabilities and values; in graph order.

    RPAM's hops are none: their probabilities are the second operand, or a mean over heads stands between.

    Args:
        model: any ONNX model.
        multiplies: whether a node is a product of two activations.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    found = []
    for mixing in model.graph.node:
        if not multiplies(mixing):
            continue
        softmax = _nearest(makers, mixing.input[0], MOVES, _is_softmax)
        scores = _nearest(makers, softmax.input[0], SCALES, multiplies) if softmax else None
        if scores:
            found.append((scores, mixing))
    return found


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
