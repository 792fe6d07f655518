"""Q/DQ insertion: one test per rule, and the inserted arithmetic against fake quantization written in numpy."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from small_graphs import attention, conv_net, graph, in_float16, linear_stack, with_metadata

from exporters.placement import placement_from_model
from exporters.qdq import dequantized, graph_hash, observer_from_float, qdq_from_float
from toolchain.errors import ModelError


def quantized(model, amax=None, keep=(), attention="none"):
    placement = placement_from_model(model, keep, attention)
    return qdq_from_float(model, placement, dict.fromkeys(placement.activations, 4.0) if amax is None else amax)


def run(model, feed, optimize=False):
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: feed})


def fake_quantized(x, amax, axis=None):
    """int8, symmetric, 127 levels a side, ties to even; amax a number or one per slice of `axis`."""
    shape = [-1 if at == axis else 1 for at in range(x.ndim)]
    scale = (np.asarray(amax) / 127).astype(np.float32)
    scale = scale if axis is None else scale.reshape(shape)
    return (np.clip(np.rint(x / scale), -128, 127) * scale).astype(np.float32)


def initializers(model):
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def nodes(model):
    return {node.name: node for node in model.graph.node}


def test_ties_round_to_even_bit_for_bit():
    # amax 127/8 and weights up to 127/4: scales 1/8 and 1/4, inputs in sixteenths; every product is exact in float32.
    rng = np.random.default_rng(0)
    w1 = rng.integers(-127 * 2, 127 * 2, (4, 6)) / 8
    w1[0] = 127 / 4
    model = linear_stack(w1=w1, b1=np.zeros(6), w2=np.eye(2, 6), b2=np.zeros(2))
    image = (rng.integers(-300, 300, (64, 4)) / 16).astype(np.float32)
    made, _ = qdq_from_float(model, placement_from_model(model), {"image": 127 / 8, "active": 127.0 * 64})
    hidden = fake_quantized(image, 127 / 8) @ fake_quantized(w1, np.full(6, 127 / 4), 1)
    expected = fake_quantized(np.maximum(hidden, 0), 127.0 * 64)[:, :2]
    assert np.abs(image * 8 % 1 - 0.5).min() == 0  # ties do occur
    np.testing.assert_array_equal(run(made, image)[0], expected)


@pytest.mark.parametrize("optimize", [False, True])
def test_linear_stack_is_the_numpy_reference(optimize):
    model = linear_stack()
    w = initializers(model)
    image = np.random.default_rng(1).standard_normal((16, 4)).astype(np.float32)
    made, _ = quantized(model, {"image": 2.5, "active": 6.0})
    up = fake_quantized(w["w1"], np.abs(w["w1"]).max(0), 1)
    hidden = np.maximum(fake_quantized(image, 2.5) @ up + w["b1"], 0)
    expected = fake_quantized(hidden, 6.0) @ fake_quantized(w["w2"], np.abs(w["w2"]).max(1), 0).T + w["b2"]
    np.testing.assert_allclose(run(made, image, optimize)[0], expected, atol=1e-5)


def test_conv_net_is_the_numpy_reference():
    model = conv_net()
    w = initializers(model)
    image = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)

    def conv(x, name):
        kernel = fake_quantized(w[f"{name}.weight"], np.abs(w[f"{name}.weight"]).max((1, 2, 3)), 0)
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
        return np.einsum("bchwij,ocij->bohw", windows, kernel) + w[f"{name}.bias"][:, None, None]

    made, _ = quantized(model, {"image": 3.0, "active": 9.0})
    active = np.maximum(conv(fake_quantized(image, 3.0), "stem"), 0)
    # The residual reads the float tensor, the convolution the quantized one.
    np.testing.assert_allclose(
        run(made, image)[0], active + conv(fake_quantized(active, 9.0), "branch"), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("optimize", [False, True])
def test_attention_is_close_to_float(optimize):
    model = attention()
    tokens = np.random.default_rng(1).standard_normal((3, 5, 8)).astype(np.float32)
    observer = observer_from_float(model, placement_from_model(model).activations)
    outputs = dict(zip([o.name for o in observer.graph.output], run(observer, tokens), strict=True))
    amax = {name: float(np.abs(a).max()) for name, a in outputs.items()}
    mixed, routing = run(quantized(model, amax, keep=["*routing*"])[0], tokens, optimize)
    assert np.abs(mixed - outputs["mixed"]).max() < 0.03 * amax["mixed"]
    assert np.abs(routing - outputs["routing"]).max() < 0.1  # the sigmoid is steep here: logits are in the tens


def test_rule_1_symmetric_scale():
    made, report = quantized(linear_stack(), {"image": 12.7, "active": 1.0})
    arrays = initializers(made)
    assert arrays["image/scale"] == np.float32(0.1)
    assert report.scales["image"] == float(arrays["image/scale"])
    points = [a for name, a in arrays.items() if name.endswith("/zero_point")]
    assert len(points) == 4
    assert all(p.dtype == np.int8 and not p.any() for p in points)


def test_rule_2_one_pair_for_all_sites_and_float_for_the_others():
    text = """g (float[b, 4] x) => (float[b, 4] z) {
        [q] a = MatMul (x, w)
        [k] b = MatMul (x, v)
        [route] c = MatMul (x, r)
        ab = Add (a, b)
        abc = Add (ab, c)
        z = Add (abc, x)
    }"""
    made, report = quantized(graph(text, {"w": (4, 4), "v": (4, 4), "r": (4, 4)}), keep=["route"])
    assert [n.op_type for n in made.graph.node].count("QuantizeLinear") == 3
    assert [nodes(made)[n].input[0] for n in ("q", "k", "route")] == [dequantized("x")] * 2 + ["x"]
    assert made.graph.node[-1].input[1] == "x"
    assert [left.name for left in report.left] == ["route", "ab", "abc", "z"]


def in_attention(half):
    model = in_float16(attention()) if half else attention()
    made, report = quantized(model, keep=["*routing*"], attention="all")
    return made, report, np.float16 if half else np.float32


@pytest.mark.parametrize("half", [False, True])
def test_rule_2_both_operands_of_attention_are_activations(half):
    made, report, dtype = in_attention(half)
    assert report.names == ("/attn/qkv/MatMul", "/attn/proj/MatMul", "/attn/scores", "/attn/values")
    assert list(nodes(made)["/attn/scores"].input) == [dequantized("query"), dequantized("key_t")]
    assert list(nodes(made)["/attn/values"].input) == [dequantized("weights"), dequantized("value")]
    assert {initializers(made)[f"{t}/scale"].dtype for t in ("query", "key_t", "weights", "value")} == {np.dtype(dtype)}


def test_rule_2_quantized_attention_is_the_numpy_reference():
    text = """g (float[b, 3, 4] q) => (float[b, 3, 4] z) {
        k = Transpose <perm = [0, 2, 1]> (q)
        scores = MatMul (q, k)
        p = Softmax (scores)
        z = MatMul (p, q)
    }"""
    made, _ = quantized(graph(text), {"q": 3.0, "k": 2.0, "p": 1.0}, attention="all")
    q = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    scores = fake_quantized(q, 3.0) @ fake_quantized(q, 2.0).transpose(0, 2, 1)
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    expected = fake_quantized(raised / raised.sum(-1, keepdims=True), 1.0) @ fake_quantized(q, 3.0)
    np.testing.assert_allclose(run(made, q)[0], expected, atol=1e-5)


def test_rule_3_weights_stay_float_with_q_dq_per_channel():
    model = attention()
    made, _ = quantized(model)
    arrays = initializers(made)
    np.testing.assert_array_equal(arrays["qkv_weight"], initializers(model)["qkv_weight"])
    q = nodes(made)["qkv_weight/axis1/QuantizeLinear"]
    dq = nodes(made)["qkv_weight/axis1/DequantizeLinear"]
    assert (q.input[0], helper.get_node_attr_value(q, "axis"), helper.get_node_attr_value(dq, "axis")) == (
        "qkv_weight",
        1,
        1,
    )
    np.testing.assert_allclose(arrays["qkv_weight/axis1/scale"], np.abs(arrays["qkv_weight"]).max(0) / 127, rtol=1e-6)


def test_rule_3_a_shared_weight_has_one_pair_per_axis():
    text = """g (float[b, 4] x) => (float[b, 4] z) {
        [a] a = MatMul (x, w)
        [b] b = MatMul (a, w)
        [c] z = Gemm <transB = 1> (b, w)
    }"""
    made, _ = quantized(graph(text, {"w": (4, 4)}))
    assert [nodes(made)[n].input[1] for n in "abc"] == [f"w/axis{axis}/dequantized" for axis in (1, 1, 0)]
    assert [n.op_type for n in made.graph.node].count("QuantizeLinear") == 5


def test_rule_4_biases_stay_float():
    made, _ = quantized(conv_net())
    assert nodes(made)["stem"].input[2] == "stem.bias"
    assert initializers(made)["stem.bias"].dtype == np.float32


def test_rule_5_scales_have_the_type_of_the_tensor():
    made, _ = quantized(in_float16(conv_net()))
    assert {a.dtype for name, a in initializers(made).items() if name.endswith("/scale")} == {np.dtype(np.float16)}


def test_rule_6_unobserved_is_an_error():
    with pytest.raises(ModelError, match="'active' has no range"):
        quantized(linear_stack(), {"image": 1.0})


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_rule_6_an_unusable_range_is_an_error(bad):
    with pytest.raises(ModelError, match=f"'active' has the range {bad}"):
        quantized(linear_stack(), {"image": 1.0, "active": bad})


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_rule_7_an_all_zero_activation_gives_the_bias(half, optimize):
    model = in_float16(conv_net()) if half else conv_net()
    made, report = quantized(model, {"image": 0.0, "active": 3.0})
    assert report.zero_activations == ("image",)
    assert initializers(made)["image/scale"] > 0
    zeros = np.zeros((1, 3, 8, 8), np.float16 if half else np.float32)
    bias = np.maximum(initializers(model)["stem.bias"], 0)
    result = run(observer_from_float(made, ["active"]), zeros, optimize)[1]
    np.testing.assert_allclose(result[0, :, 4, 4], bias, rtol=1e-3)


# Convolution straight into convolution: ONNX Runtime fuses the first one and puts its bias into int32 units.
TWO_CONVOLUTIONS = """g (float[b, 2, 4, 4] x) => (float[b, 2, 4, 4] z) {
    [first] y = Conv (x, w, b)
    [second] z = Conv (y, v)
}"""
IDENTITY = np.eye(2).reshape(2, 2, 1, 1)


@pytest.mark.parametrize("optimize", [False, True])
def test_rule_8_an_all_zero_channel_gives_its_bias(optimize):
    weight = IDENTITY * [[[[1]]], [[[0]]]]
    made, report = quantized(graph(TWO_CONVOLUTIONS, w=weight, b=[0.5, -0.75], v=IDENTITY), {"x": 1.0, "y": 2.0})
    assert (report.zero_channels, report.widened_channels) == ({"w/axis0": 1}, {})
    assert set(initializers(made)["w/axis0/scale"]) == {np.float32(1 / 127)}
    result = run(made, np.ones((1, 2, 4, 4), np.float32), optimize)[0]
    np.testing.assert_allclose(result[0, :, 0, 0], [1.5, -0.75], atol=2 / 127)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("amax", [0.0, 1e-30, 1e-6, 1.0])
@pytest.mark.parametrize("weight", [1.0, 1e-20])
def test_rule_8_no_scale_is_so_small_that_the_bias_overflows(optimize, amax, weight):
    model = graph(TWO_CONVOLUTIONS, w=IDENTITY * weight, b=[0.5, -0.75], v=IDENTITY)
    made, report = quantized(model, {"x": amax, "y": 1.0})
    assert report.widened_channels == ({} if (amax, weight) == (1.0, 1.0) else {"w/axis0": 2})
    result = run(made, np.zeros((1, 2, 4, 4), np.float32), optimize)[0]
    np.testing.assert_allclose(result[0, :, 0, 0], [0.5, -0.75], atol=1 / 127)


def test_rule_8_a_weight_of_zeros_alone():
    made, report = quantized(linear_stack(w1=np.zeros((4, 6))))
    assert report.zero_channels == {"w1/axis1": 6}
    assert (initializers(made)["w1/axis1/scale"] > 0).all()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("product", "gather_axis", "indices"),
    [("MatMul (x, w)", 1, [2, 0]), ("MatMul (x, w)", -1, [[2], [0]]), ("Gemm <transB = 1> (x, w)", 0, [[3, 3]])],
)
def test_rule_9_gather_of_channels_reads_levels(product, gather_axis, indices, half):
    axes = ", ".join(map(str, np.take(np.zeros((4, 4)), indices, gather_axis).shape))
    text = f"""g (float[b, 4] x) => (float[b, 4] z, float[{axes}] picked) {{
        [pick] picked = Gather <axis = {gather_axis}> (w, k)
        [product] z = {product}
    }}"""
    model = graph(text, {"w": (4, 4)})
    model = in_float16(model) if half else model
    model.graph.initializer.append(numpy_helper.from_array(np.array(indices), "k"))
    made, report = quantized(model)
    assert report.gathers == ("pick",)
    assert nodes(made)["pick"].input[0].endswith("/quantized")
    base = "w/axis0" if "Gemm" in product else "w/axis1"
    x = np.zeros((1, 4), np.float16 if half else np.float32)
    _, picked, whole = run(observer_from_float(made, [dequantized(base)]), x)
    np.testing.assert_array_equal(picked, np.take(whole, indices, gather_axis))


def test_rule_9_gather_along_another_axis_reads_the_float_weight():
    text = """g (float[b, 4] x) => (float[b, 4] z, float[1, 4] picked) {
        [product] z = MatMul (x, w)
        row = Constant <value_ints = [2]> ()
        [pick] picked = Gather <axis = 0> (w, row)
    }"""
    made, report = quantized(graph(text, {"w": (4, 4)}))
    assert report.gathers == ()
    assert nodes(made)["pick"].input[0] == "w"


def test_rule_10_metadata_and_interface_stay_and_the_result_is_deterministic():
    model = with_metadata(attention(), tau="0.09", classes="a,b")
    model.graph.node[0].metadata_props.add(key="scope", value="norm")
    before = model.SerializeToString(deterministic=True)
    made, _ = quantized(model)
    again, _ = quantized(model)
    assert model.SerializeToString(deterministic=True) == before
    assert made.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert {p.key: p.value for p in made.metadata_props} == {"tau": "0.09", "classes": "a,b"}
    assert nodes(made)["norm"].metadata_props[0].value == "norm"
    assert (list(made.graph.input), list(made.graph.output)) == (list(model.graph.input), list(model.graph.output))


@pytest.mark.parametrize("opset", [19, 20, 21, 23, 26])
@pytest.mark.parametrize("half", [False, True])
def test_opsets_in_float32_and_float16(opset, half):
    model = in_float16(linear_stack()) if half else linear_stack()
    model.opset_import[0].version = opset
    image = np.random.default_rng(1).standard_normal((16, 4)).astype(np.float16 if half else np.float32)
    made, _ = quantized(model, {"image": 2.5, "active": 6.0})
    expected = run(quantized(linear_stack(), {"image": 2.5, "active": 6.0})[0], image.astype(np.float32))[0]
    np.testing.assert_allclose(run(made, image)[0].astype(np.float32), expected, atol=0.15 if half else 1e-6)


def test_the_placement_of_another_model_is_refused():
    with pytest.raises(ModelError, match="'up' is not in the model"):
        qdq_from_float(conv_net(), placement_from_model(linear_stack()), {"image": 1.0, "active": 1.0})


def test_a_taken_name_is_an_error():
    text = "g (float[b, 2] x) => (float[b, 2] z) { y = Relu(x)\n z = MatMul(y, w) }"
    model = graph(text, {"w": (2, 2), "y/scale": ()})
    with pytest.raises(ModelError, match="tensor named 'y/scale' already"):
        quantized(model)


def test_a_weight_with_nan_is_an_error():
    with pytest.raises(ModelError, match="'w1' holds NaN"):
        quantized(linear_stack(w1=np.full((4, 6), np.nan)))


def test_other_float_types_are_refused():
    model = graph("g (double[b, 2] x) => (double[b, 2] z) { z = MatMul(x, w) }", {"w": (2, 2)}, dtype=np.float64)
    with pytest.raises(ModelError, match="weight of type float64"):
        quantized(model)


def test_observer_adds_outputs_and_drops_nothing():
    model = attention()
    observer = observer_from_float(model, ["tokens", "normed", "values", "normed", "mixed"])
    assert [o.name for o in observer.graph.output] == ["mixed", "routing", "normed", "values"]
    assert list(observer.graph.node) == list(model.graph.node)
    onnx.checker.check_model(observer, full_check=True)


def test_observer_of_an_unknown_tensor():
    with pytest.raises(ModelError, match="no tensor 'absent'"):
        observer_from_float(linear_stack(), ["absent"])


def test_hash_sees_structure_and_weights_but_no_metadata():
    model = linear_stack()
    same = with_metadata(linear_stack(), tau="0.09")
    same.graph.node[0].name = "renamed"
    same.graph.doc_string = "words"
    stored = numpy_helper.to_array(same.graph.initializer[0])
    same.graph.initializer[0].CopyFrom(helper.make_tensor("w1", 1, stored.shape, stored.ravel()))  # not as raw bytes
    assert graph_hash(same) == graph_hash(model)

    nudged = numpy_helper.to_array(model.graph.initializer[0]).copy()
    nudged[0, 0] = np.nextafter(nudged[0, 0], np.float32(9))
    other_attribute = linear_stack()
    other_attribute.graph.node[3].attribute[0].i = 0
    others = [linear_stack(w1=nudged), other_attribute, observer_from_float(model, ["active"])]
    assert len({graph_hash(m) for m in [model, *others]}) == 4
