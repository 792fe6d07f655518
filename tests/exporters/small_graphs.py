"""Float graphs small enough to read, in ONNX's text form, with weights drawn from a seed."""

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'

LINEAR_STACK = """stack (float[b, 4] image) => (float[b, 2] logits) {
    [up] product = MatMul (image, w1)
    [up_bias] hidden = Add (product, b1)
    [act] active = Relu (hidden)
    [down] logits = Gemm <transB = 1> (active, w2, b2)
}"""
LINEAR_WEIGHTS = {"w1": (4, 6), "b1": (6,), "w2": (2, 6), "b2": (2,)}

CONV_NET = """net (float[b, 3, 8, 8] image) => (float[b, 4, 8, 8] map) {
    [stem] first = Conv <pads = [1, 1, 1, 1]> (image, "stem.weight", "stem.bias")
    [act] active = Relu (first)
    [branch] second = Conv <pads = [1, 1, 1, 1]> (active, "branch.weight", "branch.bias")
    [residual] map = Add (active, second)
}"""
CONV_WEIGHTS = {"stem.weight": (4, 3, 3, 3), "stem.bias": (4,), "branch.weight": (4, 4, 3, 3), "branch.bias": (4,)}

ATTENTION = """attention (float[b, 5, 8] tokens) => (float[b, 5, 8] mixed, float[b, 4] routing) {
    [norm] normed = LayerNormalization (tokens, gamma, beta)
    ["/attn/qkv/MatMul"] packed = MatMul (normed, qkv_weight)
    ["/attn/qkv/Add"] qkv = Add (packed, qkv_bias)
    query, key, value = Split <axis = 2, num_outputs = 3> (qkv)
    key_t = Transpose <perm = [0, 2, 1]> (key)
    ["/attn/scores"] scores = MatMul (query, key_t)
    ["/attn/softmax"] weights = Softmax (scores)
    ["/attn/values"] values = MatMul (weights, value)
    ["/attn/proj/MatMul"] out = MatMul (values, proj_weight)
    ["/attn/proj/Add"] out_biased = Add (out, proj_bias)
    ["/add"] mixed = Add (tokens, out_biased)
    axes = Constant <value_ints = [1]> ()
    ["/pool"] pooled = ReduceMean <keepdims = 0> (mixed, axes)
    ["/CDM/_routing_fn_two/fc/Gemm"] routed = Gemm <transB = 1> (pooled, "CDM._routing_fn_two.fc.weight", fc_bias)
    ["/sigmoid"] routing = Sigmoid (routed)
}"""
ATTENTION_WEIGHTS = {
    "gamma": (8,),
    "beta": (8,),
    "qkv_weight": (8, 24),
    "qkv_bias": (24,),
    "proj_weight": (8, 8),
    "proj_bias": (8,),
    "CDM._routing_fn_two.fc.weight": (4, 8),
    "fc_bias": (4,),
}


RPAM = """rpam (float[b, 3, 4] queries, float[b, 3, 4] keys, float[b, 3, 4] value) => (float[b, 3, 4] mixed,
    float[b, 1, 3] hops) {
    key_t = Transpose <perm = [0, 2, 1]> (keys)
    [scores] raw = MatMul (queries, key_t)
    scaled = Mul (raw, half)
    masked = Add (scaled, mask)
    [softmax] probabilities = Softmax (masked)
    [mixing] mixed = MatMul (probabilities, value)
    [again] raw2 = MatMul (queries, key_t)
    [softmax2] relations = Softmax (raw2)
    axes = Constant <value_ints = [1]> ()
    mean = ReduceMean (relations, axes)
    [hop] hops = MatMul (mean, relations)
}"""
RPAM_VALUES = {"half": 0.5, "mask": np.triu(np.full((3, 3), -9.0), 1)}
"""Attention with a mask, and two hops of the same relations beside it, as in `toolchain.model.deployment.Rpam`."""


def graph(text, shapes=(), dtype=np.float32, **values):
    """The model of a text, with an initializer for each shape (drawn) and each value (given)."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape) for name, shape in dict(shapes).items()} | values
    model = parser.parse_model(HEADER + text)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array).astype(dtype), name) for name, array in arrays.items()
    )
    return model


def linear_stack(**values):
    return graph(LINEAR_STACK, LINEAR_WEIGHTS, **values)


def conv_net(**values):
    return graph(CONV_NET, CONV_WEIGHTS, **values)


def attention(**values):
    return graph(ATTENTION, ATTENTION_WEIGHTS, **values)


def in_float16(model):
    """The same graph with FP16 tensors."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for initializer in half.graph.initializer:
        array = numpy_helper.to_array(initializer)
        if array.dtype == np.float32:
            initializer.CopyFrom(numpy_helper.from_array(array.astype(np.float16), initializer.name))
    return half


def with_metadata(model, **entries):
    helper.set_model_props(model, entries)
    return model
