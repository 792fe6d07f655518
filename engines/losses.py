"""Why a product is not computed as well as it could be: the rules that TensorRT-RTX showed, and what to do.

The rules of INT8 and of fusion were measured on TensorRT-RTX 1.7.1: tests/engines builds a model that breaks each.
"""

from collections.abc import Sequence

from engines.inspection import Loss
from engines.products import UNKNOWN, Product

BOTH_OPERANDS = "a product is INT8 only where both of its operands come through Q/DQ"
FLOAT_WEIGHT = (
    "a weight that the file stores as INT8, with a DQ and no Q, is dequantized where the result is taken apart"
)
SCALES = "an INT8 product has one scale for its input and one per output channel for its weight"
ALL_OR_NONE = "attention is fused with Q/DQ on all of q, k, softmax and v, or on none"
ONE_READER = "attention is fused only where nobody else reads its softmax"
NOT_FP32 = "attention is fused in FP16 or INT8, not in FP32"
TYPES_OF_THE_FILE = "types come from the ONNX file: nothing is computed in a wider one"
TOLD = "what the listing does not tell is not guessed"
NO_RULE = "none that is known"

RANKS = {"int8": 0, "fp16": 1, "bf16": 1, "fp32": 2, UNKNOWN: 3}


def falls_short(asked: str, got: str) -> bool:
    """Whether a product is computed in a wider type than the file asks for, or nobody knows in which."""
    return asked != UNKNOWN and RANKS.get(got, RANKS[UNKNOWN]) > RANKS[asked]


def missing_q_dq(product: Product) -> Loss | None:
    """Which operand of a product lacks Q/DQ; None where both have it."""
    activation, weight = product.quantized
    if activation and weight:
        return None
    missing = "the weight has" if activation else "the input has" if weight else "input and weight have"
    return Loss(f"{missing} no Q/DQ", "put Q/DQ on both operands", BOTH_OPERANDS)


def unknown_loss(product: Product, why: str) -> Loss:
    """Of a product that the listing does not explain."""
    return Loss(why, "profile the engine on its GPU" if product.unique else "give every node a name of its own", TOLD)


def type_loss(product: Product, got: str) -> Loss | None:
    """Why a product is not INT8, or not even in the type that was asked for; None where nothing is lost."""
    if got == "int8":
        return None
    if product.asked == "int8":
        done = f"the builder multiplied in {got} although both operands have Q/DQ"
        if product.stored_int8:
            # Seen for a packed qkv that is reshaped to five dimensions and then taken apart.
            fix = "store the weight in floating point and add Q before the DQ"
            return Loss(f"{done}; the weight is stored as INT8", fix, FLOAT_WEIGHT)
        return Loss(done, "use one scale for the input and one per output channel for the weight", SCALES)
    if falls_short(product.asked, got):
        return Loss(f"{product.asked} was asked for", "report this with the ONNX file", TYPES_OF_THE_FILE)
    return missing_q_dq(product) if product.weighted else None


def fusion_loss(pair: Sequence[Product], types: Sequence[str]) -> Loss:
    """Why the products around one softmax were not compiled to one kernel: every rule that they break."""
    found = []
    if (readers := pair[0].softmax_readers) > 1:
        found.append(
            Loss(f"{readers} nodes read the softmax", "compute the second use outside the attention", ONE_READER)
        )
    if len({side for p in pair for side in p.quantized}) > 1:
        partly = "Q/DQ on some of q, k, v and softmax only"
        found.append(Loss(partly, "put Q/DQ on all four or on none", ALL_OR_NONE))
    if "fp32" in types:
        done = "the product is done in fp32"
        found.append(Loss(done, "convert what is float in the ONNX file to FP16", NOT_FP32))
    if not found:
        fix = "scale q before the product and name the shapes fixed"
        return Loss("not fused; the builder gives no reason", fix, NO_RULE)
    return Loss(
        f"not fused: {', and '.join(loss.reason for loss in found)}",
        ", and ".join(loss.fix for loss in found),
        "; ".join(loss.rule for loss in found),
    )
