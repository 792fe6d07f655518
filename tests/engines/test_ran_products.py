"""Which kernel that ran belongs to which ONNX node, and what that means for its type."""

import pytest

from engines.products import Product
from engines.ran_products import Kernel, inspection_from_kernels


def product(op: str = "MatMul", **how: bool) -> Product:
    kind = "convolution" if op == "Conv" else "linear"
    return Product("fc", op, "fc.out", kind, (True, True), asked="int8", **how)


@pytest.mark.parametrize(
    ("kernel", "type_"),
    [
        (Kernel("fc", "MatMulIntegerToFloat", ("int8", "int8", "float")), "int8"),
        (Kernel("fc_token_1", "QLinearConv", ("int8",)), "int8"),
        (Kernel("fc/MatMulAddFusion", "Gemm", ("float", "float")), "fp32"),
        (Kernel("fc/MatMulScaleFusion/", "FusedMatMul", ("float", "float")), "fp32"),
        (Kernel("fc.out_nchwc", "Conv", ("float", "float")), "fp32"),
        (Kernel("fc", "MatMul", ("float16",)), "fp16"),
        (Kernel("fc", "MatMul", ("double",)), "unknown"),
        (Kernel("fc", "Add", ("float",)), "unknown"),
        (Kernel("fc2", "MatMul", ("float",)), "unknown"),
    ],
)
def test_the_type_comes_from_the_kernel_that_bears_the_name(kernel: Kernel, type_: str) -> None:
    (found,) = inspection_from_kernels("onnxruntime", [product()], [kernel]).products
    assert found.type == type_
    assert (found.loss is None) == (type_ == "int8")


@pytest.mark.parametrize(
    ("op", "how", "others", "reason"),
    [
        ("Conv", {}, [], "ONNX Runtime's INT8 convolution needs a Q on its output too"),
        ("Gemm", {}, [], "ONNX Runtime's INT8 Gemm with a bias needs a Q on its output too"),
        ("Conv", {"output_quantized": True}, [], "ONNX Runtime did not join the Q/DQ and the product"),
        ("MatMul", {}, ["InsertedPrecisionFreeCast_x"], "ONNX Runtime's CPU has INT8 kernels for fp32 models only"),
    ],
)
def test_why_a_product_with_q_dq_ran_in_float(op: str, how: dict[str, bool], others: list[str], reason: str) -> None:
    kernels = [Kernel("fc", op, ("float",)), *(Kernel(name, "Cast", ("float16",)) for name in others)]
    (found,) = inspection_from_kernels("onnxruntime", [product(op, **how)], kernels).products
    assert found.loss is not None
    assert found.loss.reason == reason


def test_two_kernels_of_one_name_are_not_told_apart() -> None:
    (found,) = inspection_from_kernels("onnxruntime", [product()], 2 * [Kernel("fc", "MatMul", ("float",))]).products
    assert found.type == "unknown"
    assert found.loss is not None
    assert found.loss.reason == "several nodes have this name"
