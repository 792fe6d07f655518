"""Fewer than 8 bits in int8 Q/DQ (rule 11): levels and clipping worked out by hand, as ONNX's reference has them."""

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from small_graphs import graph, in_float16

from exporters.placement import placement_from_model
from exporters.qdq import observer_from_float, qdq_from_float
from exporters.scales import Levels

TEXT = """g (float[b, 2] image) => (float[b, 2] logits) {
    [fc] logits = Gemm <transB = 1> (image, w, bias)
}"""
WEIGHT, BIAS = [[7.0, 1.4], [2.2, -14.0]], [0.5, 0.0]


def run(levels, amax, images, half=False):
    model = graph(TEXT, w=np.array(WEIGHT), bias=np.array(BIAS))
    model = in_float16(model) if half else model
    made, _ = qdq_from_float(model, placement_from_model(model), {"image": amax}, levels)
    watched = ["image/quantized", "w/axis0/quantized"]
    feeds = {"image": np.array(images, np.float16 if half else np.float32)}
    return ReferenceEvaluator(observer_from_float(made, watched)).run([*watched, "logits"], feeds), made


@pytest.mark.parametrize("half", [False, True])
def test_levels_stay_within_the_bits(half):
    narrow = {"image": Levels(0, 15), "w": Levels(-8, 7)}
    # Scale 2: 3 -> 1.5 -> 2 (even), 29 -> 14.5 -> 14 (even), 31 and 1000 -> 15, -5 -> 0.
    images = [[3.0, 29.0], [31.0, 1000.0], [-5.0, 0.0]]
    (activation, weight, logits), _ = run(narrow, 30.0, images, half)
    assert activation.tolist() == [[2, 14], [15, 15], [0, 0]]
    # Scales 1 and 2.
    assert weight.tolist() == [[7, 1], [1, -7]]
    assert logits.tolist() == [[4 * 7 + 28 + 0.5, 4 * 2 - 28 * 14], [30 * 7 + 30 + 0.5, 30 * 2 - 30 * 14], [0.5, 0.0]]


def test_a_signed_activation_reaches_one_level_further_below():
    (activation, _, _), _ = run({"image": Levels(-8, 7)}, 7.0, [[-100.0, 100.0], [-7.6, 6.4]])
    assert activation.tolist() == [[-8, 7], [-8, 6]]


def test_int8_is_not_clipped_and_a_weight_never_is():
    assert "Clip" not in {node.op_type for node in run({"w": Levels(-8, 7)}, 7.0, [[0.0, 0.0]])[1].graph.node}
