"""Which numbers are in float16, by node, and where the float32 graph has them."""

import pytest
from small_graphs import graph, linear_stack

from exporters.half import HalfValue, half_values
from toolchain.errors import ModelError

SINGLE = """g (float[b, 4] image) => (float[b, 2] logits) {
    [flatten] flat = Flatten (image)
    [fc] hidden = MatMul (flat, w)
    [act] active = Relu (hidden)
    [sum] logits = Add (active, c)
}"""
HALF = """g (float[b, 4] image) => (float[b, 2] logits) {
    [Cast] image16 = Cast <to = 10> (image)
    [flatten] flat16 = Flatten (image16)
    [fc] product = MatMul (flat16, w)
    [Cast_1] wide = Cast <to = 1> (product)
    [act] positive = Relu (wide)
    [Cast_2] narrow = Cast <to = 10> (positive)
    [sum] total = Add (narrow, c)
    [Cast_3] logits = Cast <to = 1> (total)
}"""


def in_half():
    model = graph(HALF)
    weights = graph("g () => () {}", {"w": (4, 2), "c": (2,)}, dtype="float16")
    model.graph.initializer.extend(weights.graph.initializer)
    return model


def test_casts_count_and_what_stays_in_float32_does_not():
    single = graph(SINGLE, {"w": (4, 2), "c": (2,)})
    assert half_values(single, in_half()) == (
        HalfValue("Cast", "image"),
        HalfValue("fc", "hidden"),
        HalfValue("Cast_2", "active"),
        HalfValue("sum", "logits"),
    )


def test_graphs_of_two_models_are_refused():
    with pytest.raises(ModelError, match="The float32 graph has no node 'fc': export both graphs from one model"):
        half_values(linear_stack(), in_half())
