"""From ONNX products and the kernels that ONNX Runtime ran to what each product was computed in.

A kernel belongs to a product when it bears the node's name, where ONNX Runtime 1.32 may have appended
`/<Some>Fusion` (such as `/MatMulAddFusion`: product and bias became one Gemm) or `_token_<n>` (moved to another
layout), or when it is called `<output tensor>_nchwc`, a convolution in blocked layout. Everything else is `unknown`,
with the reason.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engines.inspection import RAN, UNKNOWN, Inspection, Loss, ProductReport, missing_q_dq
from engines.onnx_graph import Product

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
    )


def _report(product: Product, kernels: Sequence[Kernel], *, emulated: bool) -> ProductReport:
    ran = [k for k in kernels if _belongs(k, product)]
    if len(ran) != 1 or not product.unique:
        why = "several nodes have this name" if ran else "no kernel that ran bears this name"
        nameless = Loss(why, "give every node a name of its own and keep it through the export")
        return ProductReport(product.name, product.op, product.kind, UNKNOWN, "", nameless)
    (kernel,) = ran
    type_ = "int8" if kernel.op in INT8_OPS else TYPES.get(next(iter(kernel.inputs), ""), UNKNOWN)
    loss = None if type_ == "int8" or product.kind == "attention" else _loss(product, kernel, emulated=emulated)
    return ProductReport(product.name, product.op, product.kind, type_, kernel.op, loss)


def _belongs(kernel: Kernel, product: Product) -> bool:
    if kernel.op not in INT8_OPS | FLOAT_OPS:
        return False
    return APPENDED.sub("", kernel.name) == product.name or kernel.name == f"{product.output}_nchwc"


def _loss(product: Product, kernel: Kernel, *, emulated: bool) -> Loss:
    missing = missing_q_dq(product)
    if missing is not None:
        return missing
    if emulated:
        return Loss(
            "ONNX Runtime's CPU has INT8 kernels for fp32 models only", "keep the model in FP32 for this backend"
        )
    if kernel.op in ("Conv", "FusedConv", "Gemm", "FusedGemm") and not product.output_quantized:
        what = "INT8 convolution" if product.op == "Conv" else "INT8 Gemm with a bias"
        return Loss(f"ONNX Runtime's {what} needs a Q on its output too", "accept fp32 here, or quantize the output")
    if product.shared_by > 1:
        reason = f"ONNX Runtime did not join the Q/DQ and the product: {product.shared_by} nodes read the same DQ"
        return Loss(reason, "give each a DQ of its own")
    return Loss("ONNX Runtime did not join the Q/DQ and the product", "use int8 with zero point 0 on both operands")
