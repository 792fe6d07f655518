"""Equalization: one test per rule; exactness to the bit, factors by hand, and what it is worth under INT8."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from small_graphs import ATTENTION, ATTENTION_WEIGHTS, attention, graph, in_float16, linear_stack

from exporters.attention import Channels
from exporters.equalization import Linears, equalizable, equalized_from_float, exponents_of
from exporters.placement import placement_from_model
from exporters.qdq import qdq_from_float
from toolchain.errors import ModelError

CHANNELS = 16
LINEAR = """linear (float[b, 16] image) => (float[b, 16] y) {
    [act] x = Relu (image)
    [up] y = MatMul (x, w)
}"""
SHARED = """shared (float[b, 3, 16] image) => (float[b, 3, 8] q, float[b, 3, 8] k) {
    [norm] x = LayerNormalization (image, gamma, beta)
    [query] q = MatMul (x, wq)
    [key] k = MatMul (x, wk)
}"""
HEADS = """heads (float[b, 3, 4] tokens, float[b, 2, 3, 3] scores) => (float[b, 3, 5] y) {
    [split] apart = Reshape (tokens, two_heads)
    [heads] values = Transpose <perm = [0, 2, 1, 3]> (apart)
    [keys] keys = Identity (scores)
    [query] raw = MatMul (scores, keys)
    [softmax] probabilities = Softmax (raw)
    [mixing] averages = MatMul (probabilities, values)
    [beside] together = Transpose <perm = [0, 2, 1, 3]> (averages)
    [merge] x = Reshape (together, merged)
    [out] y = MatMul (x, w)
}"""
"""Attention of two heads with two channels each."""
TAKEN = {"x/equalize/factor": np.ones(16)}
SHARED_WEIGHTS = {"gamma": (16,), "beta": (16,), "wq": (16, 8), "wk": (16, 8)}


def sites(model):
    return placement_from_model(model).sites


def equalized(model, **exponents):
    return equalized_from_float(model, sites(model), exponents)


def heads(text):
    model = graph(text, {"w": (4, 5)})
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 3, 2, 2]), "two_heads"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 3, 4]), "merged"))
    return model


def run(model, feed, outputs=None):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = feed if isinstance(feed, dict) else {session.get_inputs()[0].name: feed}
    return session.run(outputs, feeds)


def same_bits(one, other, feed):
    for a, b in zip(run(one, feed), run(other, feed), strict=True):
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


def initializers(model):
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def operators(model):
    return [node.op_type for node in model.graph.node]


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linears(weight_amax, dtype=np.float32):
    return Linears("x", (), np.array(weight_amax, np.float64), np.dtype(dtype), Channels("x"))


def test_rule_1_linears_of_one_activation_share_the_largest_weight():
    model = graph(SHARED, SHARED_WEIGHTS)
    (found,) = equalizable(model, sites(model))
    assert [site.name for site in found.sites] == ["query", "key"]
    held = initializers(model)
    expected = np.abs(np.concatenate([held["wq"], held["wk"]], axis=1)).max(1)
    np.testing.assert_array_equal(found.weight_amax, expected)


def test_rule_1_the_other_axis_of_a_transposed_gemm():
    model = linear_stack()
    (found,) = equalizable(model, sites(model))  # the first reads the graph's input (rule 4)
    assert found.activation == "active"
    np.testing.assert_array_equal(found.weight_amax, np.abs(initializers(model)["w2"]).max(0))


def test_rule_2_factors_by_hand():
    # alpha 1/2: s = sqrt(a / w) = sqrt(64 / 1), sqrt(16 / 4), sqrt(4 / 4) = 2^3, 2^1, 2^0. The median, 2^1, is taken
    # away, and rule 3 leaves 2^-1 at 1.
    assert exponents_of(linears([1, 4, 4]), np.array([64, 16, 4]), alpha=0.5) == (2, 0, 0)
    # All activations 16 times larger: factors times 4, which the median takes away again.
    assert exponents_of(linears([1, 4, 4]), np.array([1024, 256, 64]), alpha=0.5) == (2, 0, 0)
    # alpha 1 asks the activation alone, alpha 0 the weight alone.
    assert exponents_of(linears([1, 4, 4]), np.array([64, 1, 4]), alpha=1) == (4, 0, 0)
    assert exponents_of(linears([1, 4, 4]), np.array([64, 1, 4]), alpha=0) == (2, 0, 0)


def test_rule_2_a_2x3_weight_by_hand():
    # Rows are input channels: 8 and 1/2 are the largest of each, x reaches 2 and 32.
    # alpha 1/2: sqrt(2 / 8) = 2^-1, sqrt(32 / (1/2)) = 2^3. The median, 2^1, is taken away: 2^-2, which rule 3 leaves
    # at 1, and 2^2.
    weight = np.array([[1, -8, 2], [0.5, 0.25, 0]])
    text = "two (float[b, 2] image) => (float[b, 3] y) {[act] x = Relu (image) [up] y = MatMul (x, w)}"
    model = graph(text, w=weight)
    (found,) = equalizable(model, sites(model))
    chosen = exponents_of(found, np.array([2, 32]), alpha=0.5)
    assert chosen == (0, 2)
    rewritten, _ = equalized(model, x=chosen)
    held = initializers(rewritten)
    np.testing.assert_array_equal(held["w"], [[1, -8, 2], [2, 1, 0]])
    np.testing.assert_array_equal(held["x/equalize/factor"], [1, 0.25])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-10, 10), min_size=16, max_size=16), st.integers(0, 2**16))
def test_rule_2_the_outputs_keep_their_bits(exponents, seed):
    for model, shape in ((graph(LINEAR, {"w": (16, 16)}), (5, 16)), (graph(SHARED, SHARED_WEIGHTS), (5, 3, 16))):
        rewritten, done = equalized(model, x=exponents)
        assert len(done) == any(exponents)
        same_bits(model, rewritten, random(*shape, seed=seed))


def test_rule_2_no_fp16_value_overflows():
    # FP16 ends under 2^16: 100 = 2^6.6 may grow by 2^9.
    chosen = exponents_of(linears([100.0, 1, 1, 1], np.float16), np.array([60000.0, 1, 1, 1]), alpha=1)
    assert chosen == (9, 0, 0, 0)
    assert exponents_of(linears([100.0, 1, 1, 1]), np.array([60000.0, 1, 1, 1]), alpha=1) == (10, 0, 0, 0)
    model = in_float16(graph(LINEAR, {"w": (16, 16)}))
    (found,) = equalizable(model, sites(model))
    rewritten, _ = equalized(model, x=exponents_of(found, np.geomspace(0.5, 500, CHANNELS)))
    assert initializers(rewritten)["x/equalize/factor"].dtype == np.float16
    feed = random(5, CHANNELS).astype(np.float16)
    same_bits(model, rewritten, feed)


@given(st.lists(st.floats(0, 1e4, width=32), min_size=4, max_size=4), st.floats(0, 1))
def test_rule_3_no_channel_is_raised(amax, alpha):
    chosen = exponents_of(linears([1, 0.25, 4, 64]), np.array(amax), alpha)
    assert min(chosen) >= 0


def test_rule_3_dead_channels_have_factor_1():
    # Of the others: sqrt(1 / 4) = 2^-1, sqrt(256 / 4) = 2^3; their median, 2, is taken away.
    assert exponents_of(linears([1, 0, 4, 4]), np.array([0.0, 99, 1, 256]), alpha=0.5) == (0, 0, 0, 2)
    assert exponents_of(linears([0, 1]), np.array([1.0, 0])) == (0, 0)


@pytest.mark.parametrize(
    "text",
    [
        LINEAR.replace("float[b, 16] y", "float[b, 16] y, float[16, 16] t").replace("}", " t = Identity (w) }"),
        LINEAR.replace("w)", "w2)").replace("[act]", "w2 = Identity (w) [act]"),
        LINEAR.replace("[act] x = Relu (image)", "").replace("(x, w)", "(image, w)"),
    ],
    ids=["another reader", "no initializer", "graph input"],
)
def test_rule_4_what_cannot_be_equalized_stays(text):
    model = graph(text, {"w": (16, 16)})
    assert [site.name for site in sites(model)] == ["up"]
    assert equalizable(model, sites(model)) == ()


def test_rule_4_a_reader_in_a_branch_counts():
    branch = onnx.parser.parse_graph("inner () => (float[16, 16] out) { out = Identity (w) }")
    model = graph(LINEAR, {"w": (16, 16)})
    model.graph.node.append(onnx.helper.make_node("If", ["flag"], ["t"], then_branch=branch, else_branch=branch))
    assert equalizable(model, sites(model)) == ()


def test_rule_5_factors_are_folded_into_a_layer_norm():
    model = graph(SHARED, SHARED_WEIGHTS)
    exponents = [*range(-8, 8)]
    rewritten, (done,) = equalized(model, x=exponents)
    assert (done.activation, done.how, done.linears) == ("x", "folded into norm", ("query", "key"))
    assert (done.least, done.largest) == (-8, 7)
    assert operators(rewritten) == operators(model)
    before, after = initializers(model), initializers(rewritten)
    factors = 2.0 ** np.array(exponents)
    np.testing.assert_array_equal(after["x/equalize/scale"], before["gamma"] / factors)
    np.testing.assert_array_equal(after["x/equalize/bias"], before["beta"] / factors)
    np.testing.assert_array_equal(after["wk"], before["wk"] * factors[:, None])
    assert not {"gamma", "beta"} & {*after}
    same_bits(model, rewritten, random(2, 3, 16))


def test_rule_5_initializers_of_others_are_not_touched():
    text = SHARED.replace("[query]", "again = LayerNormalization (image, gamma, beta)\n [query]")
    text = text.replace("float[b, 3, 8] k)", "float[b, 3, 8] k, float[b, 3, 16] again)")
    model = graph(text, SHARED_WEIGHTS)
    rewritten, (done,) = equalized(model, x=[3, *[0] * 15])
    assert done.how == "folded into norm"
    np.testing.assert_array_equal(initializers(rewritten)["gamma"], initializers(model)["gamma"])
    same_bits(model, rewritten, random(2, 3, 16))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("float[b, 3, 8] k)", "float[b, 3, 8] k, float[b, 3, 16] x)"),
        ("float[b, 3, 8] k)", "float[b, 3, 8] k, float[b, 3, 16] z)"),
        ("LayerNormalization (", "LayerNormalization <axis = 1> ("),
    ],
    ids=["the caller reads it", "a node reads it", "another axis"],
)
def test_rule_6_elsewhere_a_mul_stands_before_the_linears(old, new):
    text = SHARED.replace(old, new)
    text = text.replace("}", " z = Relu (x) }") if " z)" in text else text
    weights = SHARED_WEIGHTS | ({"gamma": (3, 16), "beta": (3, 16)} if "axis" in text else {})
    model = graph(text, weights)
    rewritten, (done,) = equalized(model, x=[-2, 5, *[0] * 14])
    assert done.how == "Mul x/equalize"
    added = [node for node in rewritten.graph.node if node.name == "x/equalize"]
    assert [(node.op_type, *node.input, *node.output) for node in added] == [
        ("Mul", "x", "x/equalize/factor", "x/equalized")
    ]
    np.testing.assert_array_equal(initializers(rewritten)["x/equalize/factor"], [4, 1 / 32, *[1] * 14])
    onnx.checker.check_model(rewritten, full_check=True)
    same_bits(model, rewritten, random(2, 3, 16))


def test_rule_7_factors_of_1_change_nothing():
    model = attention()
    rewritten, done = equalized_from_float(model, sites(model), {"normed": [0] * 8})
    assert done == ()
    assert rewritten.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_a_transformer_s_attention_keeps_its_bits():
    model = graph(ATTENTION, ATTENTION_WEIGHTS)
    exponents = {found.activation: [*range(-4, 4)] for found in equalizable(model, sites(model))}
    rewritten, done = equalized_from_float(model, sites(model), exponents)
    assert [d.how for d in done] == ["folded into norm", "Mul values/equalize", "Mul pooled/equalize"]
    same_bits(model, rewritten, random(2, 5, 8))


def test_rule_9_what_attention_makes_takes_its_factors_from_the_values():
    def of(text):
        (found,) = equalizable(heads(text), sites(heads(text)))
        return found.channels

    assert of(HEADS) == Channels("values", by_head=True)
    # Channels of another order are its own.
    assert of(HEADS.replace("together = Transpose <perm = [0, 2, 1, 3]>", "together = Transpose")) == Channels("x")
    assert of(HEADS.replace("probabilities = Softmax (raw)", "probabilities = Relu (raw)")) == Channels("x")
    model = attention()
    found = {linears.activation: linears.channels for linears in equalizable(model, sites(model))}
    assert found["values"] == Channels("value")  # a single head
    assert found["normed"] == Channels("normed")


def test_rule_9_no_average_is_louder_than_its_values():
    model = heads(HEADS)
    (found,) = equalizable(model, sites(model))
    exponents = exponents_of(found, np.array([64, 1, 4, 1]), alpha=1)
    assert exponents == (5, 0, 1, 0)  # the median's exponent is 1, and no channel is raised (rule 3)
    rewritten, (done,) = equalized(model, x=exponents)
    assert done.how == "Mul x/equalize"
    tokens = random(1, 3, 4) * np.array([64, 1, 4, 1], np.float32)
    for sharpness in (0, 1, 100):
        scores = sharpness * random(1, 2, 3, 3, seed=1)
        watched = onnx.ModelProto()
        watched.CopyFrom(rewritten)
        watched.graph.output.append(onnx.ValueInfoProto(name="x/equalized"))
        (even,) = run(watched, {"tokens": tokens, "scores": scores}, ["x/equalized"])
        assert (np.abs(even).max((0, 1)) <= np.abs(tokens).max((0, 1)) / 2.0 ** np.array(exponents) * (1 + 1e-6)).all()


def by_head(weights):
    return Linears("x", (), np.ones(weights), np.dtype(np.float32), Channels("values", by_head=True))


def test_rule_9_one_head_of_values_for_all():
    loud = np.array([1.0, 16])
    assert exponents_of(by_head(4), loud, alpha=1) == exponents_of(linears([1] * 4), np.tile(loud, 2), alpha=1)


def test_rule_9_a_linear_for_each_head_has_the_loudest():
    # Heads (1, 64) and (16, 1): a linear of two inputs reads both.
    found = exponents_of(by_head(2), np.array([1.0, 64, 16, 1]), alpha=1)
    assert found == exponents_of(linears([1, 1]), np.array([16.0, 64]), alpha=1)


@pytest.mark.parametrize("exponents", [{"x": [1]}, {"other": [1] * 16}])
def test_factors_of_another_model_are_refused(exponents):
    with pytest.raises(ModelError, match=r"Tensor '(x|other)' cannot take its (1|16) factors"):
        equalized(graph(LINEAR, {"w": (16, 16)}), **exponents)


def test_an_activation_of_another_width_is_refused():
    with pytest.raises(ModelError, match="'x' has 2 channels, its weights 3"):
        exponents_of(linears([1, 1, 1]), np.ones(2))


def test_a_taken_name_is_an_error():
    model = graph(LINEAR.replace("Relu (image)", 'Add (image, "x/equalize/factor")'), {"w": (16, 16)}, **TAKEN)
    with pytest.raises(ModelError, match="tensor named 'x/equalize/factor' already"):
        equalized(model, x=[1] * 16)


def test_a_planted_outlier_no_longer_costs_6_db():
    feed = np.abs(random(64, CHANNELS))
    feed[:, 5] *= 200
    model = graph(LINEAR, {"w": (16, 16)})
    (found,) = equalizable(model, sites(model))
    even, _ = equalized(model, x=exponents_of(found, feed.max(0)))
    reference = run(model, feed)[0]

    def snr_db(graph_of, tensor, amax):
        error = run(qdq_from_float(graph_of, placement_from_model(graph_of), {tensor: amax})[0], feed)[0] - reference
        return 10 * np.log10((reference**2).mean() / (error**2).mean())

    factor = initializers(even)["x/equalize/factor"]
    assert snr_db(even, "x/equalized", (feed * factor).max()) > snr_db(model, "x", feed.max()) + 6
