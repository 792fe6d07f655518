"""From ONNX products and the kernels that ONNX Runtime ran to what each product was computed in.

A kernel belongs to a product when it bears the node's name, where ONNX Runtime 1.32 may have appended
`/<Some>Fusion` (such as `/MatMulAddFusion`: product and bias became one Gemm) or `_token_<n>` (moved to another
layout), or when it is called `<output tensor>_nchwc`, a convolution in blocked layout. Everything else is `unknown`,
with the reason.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engines.inspection import RAN, Inspection, Loss, ProductReport
from engines.losses import falls_short, missing_q_dq
from engines.products import UNKNOWN, Product

INT8_OPS = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger"}
    | {"DynamicQuantizeMatMul", "QAttention"}
)
FLOAT_OPS = frozenset({"MatMul", "Gemm", "Conv", "FusedMatMul", "FusedGemm", "FusedConv"})
ATTENTION_OPS = frozenset({"Attention", "MultiHeadAttention", "QAttention"})
TYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
APPENDED = re.compile(r"(/\w+Fusion/?|_token_\d+)+$")
HALF_PRECISION_CAST = "InsertedPrecisionFreeCast_"
"""What ONNX Runtime calls the casts around a float16 node that its CPU provider computes in float32."""

NAMED = "a kernel is found by the name of its node"
CPU_IS_FP32 = "ONNX Runtime's CPU provider computes float16 models in float32"
OUTPUT = "ONNX Runtime's INT8 convolution and Gemm with a bias write INT8"
OWN_DQ = "ONNX Runtime joins a DQ with the one node that reads it"
JOINED = "ONNX Runtime joins Q/DQ of int8 and zero point 0 with the product between"


@dataclass(frozen=True)
class Kernel:
    """A node that ran: its name, its operator after optimization, and the types of its inputs (`float`, `int8`...)."""

    name: str
    op: str
    inputs: tuple[str, ...]


def inspection_from_kernels(backend: str, products: Sequence[Product], kernels: Sequence[Kernel]) -> Inspection:
    """What ran for each product."""
    emulated = any(k.name.startswith(HALF_PRECISION_CAST) for k in kernels)
    return Inspection(
        backend=backend,
        evidence=RAN,
        products=tuple(_report(p, kernels, emulated=emulated) for p in products),
        layers=len(kernels),
        fused_attention=sum(k.op in ATTENTION_OPS for k in kernels),
        untold=("weight and activation bytes: ONNX Runtime's profiler does not list them",),
    )


def _report(product: Product, kernels: Sequence[Kernel], *, emulated: bool) -> ProductReport:
    ran = [k for k in kernels if _belongs(k, product)]
    type_, op = UNKNOWN, ""
    loss: Loss | None = None
    if len(ran) != 1 or not product.unique:
        why = "several nodes have this name" if ran else "no kernel that ran bears this name"
        loss = Loss(why, "give every node a name of its own and keep it through the export", NAMED)
    else:
        (kernel,) = ran
        op, type_ = kernel.op, "int8" if kernel.op in INT8_OPS else TYPES.get(next(iter(kernel.inputs), ""), UNKNOWN)
        if type_ != "int8" and (product.weighted or falls_short(product.asked, type_)):
            loss = _loss(product, kernel, emulated=emulated)
    return ProductReport(product.name, product.op, product.kind, type_, op, loss, product.asked, product.softmax)


def _belongs(kernel: Kernel, product: Product) -> bool:
    if kernel.op not in INT8_OPS | FLOAT_OPS:
        return False
    return APPENDED.sub("", kernel.name) == product.name or kernel.name == f"{product.output}_nchwc"


def _loss(product: Product, kernel: Kernel, *, emulated: bool) -> Loss:
    if emulated and product.asked == "fp16":
        return Loss("computed in fp32, between casts", "keep the model in FP32 for this backend", CPU_IS_FP32)
    missing = missing_q_dq(product)
    if missing is not None:
        return missing
    if emulated:
        reason = "ONNX Runtime's CPU has INT8 kernels for fp32 models only"
        return Loss(reason, "keep the model in FP32 for this backend", CPU_IS_FP32)
    if kernel.op in ("Conv", "FusedConv", "Gemm", "FusedGemm") and not product.output_quantized:
        what = "INT8 convolution" if product.op == "Conv" else "INT8 Gemm with a bias"
        reason = f"ONNX Runtime's {what} needs a Q on its output too"
        return Loss(reason, "accept fp32 here, or quantize the output", OUTPUT)
    if product.shared_by > 1:
        reason = f"ONNX Runtime did not join the Q/DQ and the product: {product.shared_by} nodes read the same DQ"
        return Loss(reason, "give each a DQ of its own", OWN_DQ)
    fix = "use int8 with zero point 0 on both operands"
    return Loss("ONNX Runtime did not join the Q/DQ and the product", fix, JOINED)
