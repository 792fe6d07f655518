"""Shared: a one-block vision transformer with explicit Q/DQ, built in half a second, and a GPU that is none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_tensorrt import FakeGPU, FakeVendor
from onnx import TensorProto, helper, numpy_helper

from engines import cuda

BATCH, SIDE, PATCH, WIDTH, HEADS, CLASSES = "B", 32, 8, 32, 2, 5
TOKENS = (SIDE // PATCH) ** 2


class GraphWriter:
    """Collects nodes and initializers; every method returns the name of the tensor it made."""

    def __init__(self, precision: str, floats: tuple[str, ...], stored: tuple[str, ...] = ()) -> None:
        self.type = np.float16 if precision == "fp16" else np.float32
        self.floats = floats
        self.stored = stored
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.random = np.random.default_rng(0)

    def constant(self, name: str, value: Any) -> str:
        self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def weight(self, name: str, *shape: int) -> str:
        return self.constant(name, (0.1 * self.random.standard_normal(shape)).astype(self.type))

    def node(self, op: str, inputs: list[str], output: str, name: str | None = None, **attributes: Any) -> str:
        name = output if name is None else name
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def q_dq(self, tensor: str, scales: Any = 0.02, axis: int | None = None) -> str:
        where = {} if axis is None else {"axis": axis}
        scale = self.constant(f"{tensor}.scale", np.asarray(scales, self.type))
        zero = self.constant(f"{tensor}.zero", np.zeros(np.shape(scales), np.int8))
        if f"{tensor}.dq" not in {n.output[0] for n in self.nodes}:
            self.node("QuantizeLinear", [tensor, scale, zero], f"{tensor}.q", **where)
            self.node("DequantizeLinear", [f"{tensor}.q", scale, zero], f"{tensor}.dq", **where)
        return f"{tensor}.dq"

    def stored_int8(self, name: str, shape: tuple[int, ...], axis: int) -> str:
        """A weight that is INT8 in the file, with a DQ per output channel and no Q."""
        levels = self.constant(f"{name}.levels", self.random.integers(-127, 128, shape, np.int8))
        scales = self.constant(f"{name}.scales", np.full(shape[axis], 0.003, self.type))
        zeros = self.constant(f"{name}.zeros", np.zeros(shape[axis], np.int8))
        return self.node("DequantizeLinear", [levels, scales, zeros], f"{name}.weight.dq", axis=axis)

    def product(self, op: str, name: str, tensor: str, shape: tuple[int, ...], axis: int, **attributes: Any) -> str:
        """A linear or convolution called `name`, with Q/DQ on both operands unless it is one of `floats`."""
        bias = self.weight(f"{name}.bias", shape[axis])
        if name in self.stored:
            tensor, weight = self.q_dq(tensor), self.stored_int8(name, shape, axis)
        else:
            weight = self.weight(f"{name}.weight", *shape)
            if name not in self.floats:
                tensor, weight = self.q_dq(tensor), self.q_dq(weight, np.full(shape[axis], 0.003), axis)
        if op == "MatMul":
            return self.node("Add", [self.node(op, [tensor, weight], f"{name}.product", name), bias], f"{name}.out")
        return self.node(op, [tensor, weight, bias], f"{name}.out", name, **attributes)

    def linear(self, name: str, tensor: str, inputs: int, outputs: int) -> str:
        return self.product("MatMul", name, tensor, (inputs, outputs), 1)

    def norm(self, name: str, tensor: str) -> str:
        scale = self.constant(f"{name}.scale", np.ones(WIDTH, self.type))
        return self.node("LayerNormalization", [tensor, scale, self.weight(f"{name}.bias", WIDTH)], name, axis=-1)

    def heads(self, tensor: str, order: list[int]) -> str:
        shape = self.constant("heads", np.array([0, TOKENS, HEADS, WIDTH // HEADS]))
        return self.node(
            "Transpose", [self.node("Reshape", [tensor, shape], f"{tensor}.split")], f"{tensor}.t", perm=order
        )

    def packed(self, tensor: str) -> tuple[str, ...]:
        """Queries, keys and values (B, H, T, d) from one linear, the way timm takes them apart."""
        shape = self.constant("qkv.shape", np.array([0, TOKENS, 3, HEADS, WIDTH // HEADS]))
        five = self.node("Reshape", [self.linear("qkv", tensor, WIDTH, 3 * WIDTH), shape], "qkv.split")
        five = self.node("Transpose", [five], "qkv.t", perm=[2, 0, 3, 1, 4])
        parts = (self.constant(f"part{k}", np.array(k)) for k in range(3))
        return tuple(self.node("Gather", [five, part], f"{part}.out", axis=0) for part in parts)


def transformer(
    path: Path,
    precision: str = "fp32",
    floats: tuple[str, ...] = (),
    attention_map: bool = False,
    packed: bool = False,
    stored: tuple[str, ...] = (),
    attention_q_dq: tuple[str, ...] = (),
) -> Path:
    """Write `image` (B, 3, 32, 32) -> `logits` (B, 5).

    Args:
        path: file to write.
        precision: of everything between the input and the output.
        floats: products without Q/DQ.
        attention_map: the softmax has a second reader.
        packed: one linear `qkv` of five dimensions that is taken apart, in place of `q`, `k` and `v`.
        stored: products whose weight is INT8 in the file.
        attention_q_dq: which of `q`, `k`, `v` and `softmax` have Q/DQ in front of the attention products.
    """
    g = GraphWriter(precision, floats, stored)
    half, out = precision == "fp16", {"logits": [BATCH, CLASSES]}
    x = g.node("Cast", ["image"], "image16", to=TensorProto.FLOAT16) if half else "image"
    x = g.product("Conv", "patch", x, (WIDTH, 3, PATCH, PATCH), 0, strides=[PATCH, PATCH], kernel_shape=[PATCH, PATCH])
    x = g.node("Reshape", [x, g.constant("tokens", np.array([0, WIDTH, TOKENS]))], "patches")
    x = g.node("Transpose", [x], "embedded", perm=[0, 2, 1])
    y = g.norm("norm1", x)
    q, k, v = g.packed(y) if packed else (g.linear(name, y, WIDTH, WIDTH) for name in ("q", "k", "v"))
    q = g.node("Mul", [q, g.constant("root", np.asarray((WIDTH // HEADS) ** -0.5, g.type))], "q.scaled")
    if packed:
        k = g.node("Transpose", [k], "k.t", perm=[0, 1, 3, 2])
    else:
        q, k, v = g.heads(q, [0, 2, 1, 3]), g.heads(k, [0, 2, 3, 1]), g.heads(v, [0, 2, 1, 3])
    q, k, v = (g.q_dq(t) if n in attention_q_dq else t for n, t in zip("qkv", (q, k, v), strict=True))
    a = g.node("Softmax", [g.node("MatMul", [q, k], "scores", "qk")], "softmax", axis=-1)
    if attention_map:
        mean = g.node("ReduceMean", [a, g.constant("over_heads", np.array([1]))], "mean", keepdims=0)
        out["map"] = [BATCH, TOKENS, TOKENS]
        g.node("Cast", [mean], "map", to=TensorProto.FLOAT)
    a = g.q_dq(a, 1 / 127) if "softmax" in attention_q_dq else a
    a = g.node("Transpose", [g.node("MatMul", [a, v], "mixed", "pv")], "mixed.t", perm=[0, 2, 1, 3])
    a = g.node("Reshape", [a, g.constant("merged", np.array([0, TOKENS, WIDTH]))], "context")
    x = g.node("Add", [x, g.linear("proj", a, WIDTH, WIDTH)], "residual1")
    y = g.node("Gelu", [g.linear("fc1", g.norm("norm2", x), WIDTH, 4 * WIDTH)], "gelu")
    x = g.node("Add", [x, g.linear("fc2", y, 4 * WIDTH, WIDTH)], "residual2")
    x = g.node("ReduceMean", [x, g.constant("over_tokens", np.array([1]))], "pooled", keepdims=0)
    x = g.product("Gemm", "head", x, (CLASSES, WIDTH), 0, transB=1)
    g.node("Cast", [x], "logits", to=TensorProto.FLOAT)
    return write(path, g, {"image": [BATCH, 3, SIDE, SIDE]}, out)


def write(path: Path, g: GraphWriter, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]) -> Path:
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(g.nodes, "test", *values, list(g.initializers.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"tau": "0.3"})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture
def write_transformer(tmp_path: Path) -> Callable[..., Path]:
    """`transformer`, writing to `model.onnx` in the test's own folder."""
    return lambda **how: transformer(tmp_path / "model.onnx", **how)


@pytest.fixture
def images() -> dict[str, Any]:
    return {"image": np.random.default_rng(1).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)}


@pytest.fixture
def write_product(tmp_path: Path) -> Callable[..., Path]:
    """One MatMul `product` of `x` (B, 16, 64) and a weight (64, 128), with Q/DQ where asked."""

    def writer(activation: bool, weight: bool, name: str = "product", weight_axis: int = 1) -> Path:
        g = GraphWriter("fp16", ())
        x = g.node("Cast", ["x"], "x16", to=TensorProto.FLOAT16)
        w = g.weight("w", 64, 128)
        x = g.q_dq(x) if activation else x
        w = g.q_dq(w, np.full((64, 128)[weight_axis], 0.003), weight_axis) if weight else w
        g.node("Cast", [g.node("MatMul", [x, w], "y16", name)], "y", to=TensorProto.FLOAT)
        return write(tmp_path / "product.onnx", g, {"x": [BATCH, 16, 64]}, {"y": [BATCH, 16, 128]})

    return writer


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    fake = FakeGPU()
    monkeypatch.setattr(cuda, "device", lambda: fake)
    return fake


@pytest.fixture
def vendor(gpu: FakeGPU) -> FakeVendor:
    return FakeVendor(gpu)
