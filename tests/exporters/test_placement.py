"""One test per rule of the placement."""

import numpy as np
import pytest
from onnx import helper
from small_graphs import RPAM, RPAM_VALUES, attention, conv_net, graph, linear_stack

from exporters.constants import Constants
from exporters.placement import AttentionSite, Left, Site, casts_of, placement_from_model
from toolchain.errors import ModelError, UsageError


def reasons(model, *keep):
    return {left.name: left.reason for left in placement_from_model(model, keep).left}


def sites(model, *keep):
    return {site.name: site for site in placement_from_model(model, keep).sites}


def product(expression, shapes=(), **values):
    """A graph of one node of interest."""
    return graph(f"g (float[b, n] x, float[n, n] y) => (float[p, q] z) {{ {expression} }}", shapes, **values)


def test_linear_stack():
    assert placement_from_model(linear_stack()).sites == (
        Site("up", "", "MatMul", "image", "w1", 1, "", "product"),
        Site("down", "", "Gemm", "active", "w2", 0, "b2", "logits"),
    )


def test_packed_qkv_and_what_stands_around_it():
    placement = placement_from_model(attention(), ["*_routing_fn_two*"])
    assert [s.name for s in placement.sites] == ["/attn/qkv/MatMul", "/attn/proj/MatMul"]
    assert placement.activations == ("normed", "values")
    assert [(left.name, left.reason.rsplit("(", 1)[1]) for left in placement.left] == [
        ("norm", "rule 1)"),
        ("/attn/scores", "rule 4)"),
        ("/attn/softmax", "rule 1)"),
        ("/attn/values", "rule 4)"),
        ("/add", "rule 2)"),
        ("/CDM/_routing_fn_two/fc/Gemm", "rule 3)"),
    ]


def test_rule_1_only_products_are_sites():
    left = reasons(attention())
    assert (left["norm"], left["/attn/softmax"]) == (
        "normalization stays float (rule 1)",
        "softmax stays float: 8 bits move the map (rule 1)",
    )
    assert {site.kind for site in sites(attention()).values()} == {"MatMul", "Gemm"}
    norm = product("z = BatchNormalization(x, w, w, w, w)", {"w": (3,)})
    assert "a scale for each (rule 1)" in reasons(norm)["z"]


def test_rule_2_residual_adds_are_left_and_biases_are_not_mentioned():
    assert reasons(attention())["/add"] == "sum of two activations: residual adds stay float (rule 2)"
    assert {"/attn/qkv/Add", "/attn/proj/Add"}.isdisjoint(reasons(attention()))


@pytest.mark.parametrize("pattern", ["/CDM/*/fc/*", "CDM._routing_fn_two.fc.weight", "*routing*"])
def test_rule_3_by_node_or_weight_name(pattern):
    assert "kept float by pattern" in reasons(attention(), pattern)["/CDM/_routing_fn_two/fc/Gemm"]


def test_rule_3_by_torch_module():
    model = linear_stack()
    scopes = "['', 'blocks.0', 'blocks.0.mlp.fc1', 'linear']"
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert sites(model)["up"].module == "blocks.0.mlp.fc1"
    assert list(sites(model, "blocks.*.fc1")) == ["down"]


@pytest.mark.parametrize("pattern", ["CDM.absent", "/attn/softmax"])
def test_rule_3_a_pattern_without_a_product_is_an_error(pattern):
    with pytest.raises(UsageError, match=f"'{pattern}' matches no linear or convolution"):
        placement_from_model(attention(), ["*qkv*", pattern])


def test_rule_4_products_of_activations_are_left():
    assert "all or none, here none (rule 4)" in reasons(product("z = MatMul(x, y)"))["z"]


def test_rule_4_attention_is_quantized_whole():
    placement = placement_from_model(attention(), ["*routing*"], "all")
    assert placement.attention == (
        AttentionSite(
            ("/attn/scores", "/attn/values"), (("query", "key_t"), ("weights", "value")), ("scores", "values")
        ),
    )
    assert placement.activations == ("normed", "values", "query", "key_t", "weights", "value")
    assert [site.name for site in placement.sites] == ["/attn/qkv/MatMul", "/attn/proj/MatMul"]
    assert {"/attn/scores", "/attn/values"}.isdisjoint(left.name for left in placement.left)


def test_rule_4_attention_is_found_behind_scale_and_mask_and_the_hops_of_rpam_are_none():
    placement = placement_from_model(graph(RPAM, **RPAM_VALUES), (), "all")
    assert [site.names for site in placement.attention] == [("scores", "mixing")]
    assert placement.attention[0].operands == (("queries", "key_t"), ("probabilities", "value"))
    reason = "product of two activations outside the attention that is quantized whole (rule 4)"
    left = {entry.name: entry.reason for entry in placement.left}
    assert (left["again"], left["hop"]) == (reason, reason)


@pytest.mark.parametrize("pattern", ["/attn/scores", "/attn/values"])
def test_rule_4_a_pattern_that_keeps_one_product_keeps_both(pattern):
    placement = placement_from_model(attention(), [pattern], "all")
    assert placement.attention == ()
    assert {"/attn/scores", "/attn/values"} <= {left.name for left in placement.left}


def test_rule_4_there_is_no_half():
    with pytest.raises(UsageError, match="unknown --attention 'some': choose one of none, all"):
        placement_from_model(attention(), (), "some")


def test_rule_5_constant_first_operand():
    assert "(rule 5)" in reasons(product("z = MatMul(w, x)", {"w": (3, 3)}))["z"]
    assert "(rule 5)" in reasons(product("z = MatMul(w, w)", {"w": (3, 3)}))["z"]


def test_rule_6_data_movement_keeps_a_weight_constant():
    model = product("t = Transpose <perm = [1, 0]> (w)\n u = Identity(t)\n [l] z = MatMul(x, u)", {"w": (2, 3)})
    assert sites(model)["l"].weight == "u"
    weight = Constants(model).value("u")
    assert weight.shape == (3, 2)
    np.testing.assert_array_equal(weight.T, Constants(model).value("w"))


def test_rule_6_one_output_of_several():
    model = product("p, q = Split <axis = 0, num_outputs = 2> (w)\n [l] z = MatMul(x, q)", w=np.arange(8).reshape(4, 2))
    assert sites(model)["l"].weight == "q"
    np.testing.assert_array_equal(Constants(model).value("q"), [[4, 5], [6, 7]])


def test_rule_6_weight_from_a_constant_node():
    model = product("w = Constant <value = float[2, 2] {1, 2, 3, 4}> ()\n [l] z = MatMul(x, w)")
    assert sites(model)["l"].weight == "w"


def test_rule_6_computed_or_overridable_weights_are_left():
    assert "'u' is not constant (rule 6)" in reasons(product("u = Relu(w)\n z = Gemm(x, u)", {"w": (2, 2)}))["z"]
    assert "'y' is not constant (rule 6)" in reasons(product("z = Gemm(x, y)", {"y": (2, 2)}))["z"]


def test_rule_7_shapes_that_are_left():
    assert "has 3 axes, not 2 (rule 7)" in reasons(product("z = MatMul(x, w)", {"w": (2, 3, 3)}))["z"]
    assert "transA (rule 7)" in reasons(product("z = Gemm <transA = 1> (x, w)", {"w": (2, 2)}))["z"]


def test_rule_8_axes():
    assert sites(product("[l] z = Gemm(x, w)", {"w": (2, 3)}))["l"].axis == 1
    assert sites(product("[l] z = Gemm <transB = 1> (x, w)", {"w": (2, 3)}))["l"].axis == 0
    assert {site.axis for site in sites(conv_net()).values()} == {0}


def test_rule_9_what_is_not_covered():
    assert "(rule 9)" in reasons(product("z = ConvTranspose(x, w)", {"w": (1, 1, 2, 2)}))["z"]
    assert "(rule 9)" in reasons(product('z = Einsum <equation = "bn,nm->bm"> (x, w)', {"w": (2, 2)}))["z"]


def test_rule_9_what_stands_in_a_body_is_not_covered():
    left = reasons(
        product(
            "z = If (c) <then_branch = a () => (float[1] t) { t = Relu(w) }, "
            "else_branch = b () => (float[1] e) { e = MatMul(w, w) }>",
            c=True,
            w=np.ones(1),
        )
    )
    assert left == {"z": "what stands in a control-flow body is not covered (rule 9)"}


def test_casts_of_a_tensor_hold_its_values():
    text = "a = Cast <to = 10> (x)\n b = Cast <to = 1> (a)\n c = Relu(b)\n d = Cast <to = 10> (c)\n z = Relu(y)"
    assert casts_of(product(text), "x") == ("x", "a", "b")


def test_nameless_nodes_go_by_their_output():
    placement = placement_from_model(product("z = MatMul(x, w)\n s = Softmax(z)", {"w": (2, 2)}))
    assert placement.sites[0].name == "z"
    assert placement.left == (Left("s", "Softmax", "softmax stays float: 8 bits move the map (rule 1)"),)


def test_a_quantized_model_is_refused():
    model = linear_stack()
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["image", "s"], ["q"], "q0"))
    with pytest.raises(ModelError, match="'q0' is a QuantizeLinear"):
        placement_from_model(model)


def test_rule_10_old_opsets_are_refused():
    model = linear_stack()
    model.opset_import[0].version = 17
    with pytest.raises(ModelError, match="has opset 17: export it with opset 19"):
        placement_from_model(model)
