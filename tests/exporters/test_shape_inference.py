"""Against ONNX's own inference and checker, which carry the weights along."""

import numpy as np
import onnx
import pytest
from foreign_models import GEMM_WEIGHTS, GEMMS
from onnx import TensorProto, helper
from small_graphs import RPAM, RPAM_VALUES, attention, conv_net, graph, linear_stack

from exporters.shape_inference import SMALL, check_whole, inferred


def gemms():
    rng = np.random.default_rng(0)
    return graph(GEMMS, **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in GEMM_WEIGHTS.items()})


MODELS = {
    "attention": attention,
    "convolutions": conv_net,
    "large weights": gemms,
    "linears": linear_stack,
    "rpam": lambda: graph(RPAM, **RPAM_VALUES),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_types_as_with_the_weights(name):
    model = MODELS[name]()
    before = model.SerializeToString(deterministic=True)
    expected = onnx.shape_inference.infer_shapes(model).graph
    found = inferred(model)
    assert {v.name: v for v in found.value_info} == {v.name: v for v in expected.value_info}
    assert list(found.output) == list(expected.output)
    assert model.SerializeToString(deterministic=True) == before


def test_large_weights_are_left_behind():
    assert any(np.prod(shape) > SMALL for shape in GEMM_WEIGHTS.values())
    assert max(len(i.raw_data) for i in inferred(gemms()).initializer) <= 4 * SMALL
    check_whole(gemms())


def test_contradicting_types_are_found():
    model = linear_stack()
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(onnx.shape_inference.InferenceError):
        check_whole(model)


def test_broken_rules_are_found():
    model = linear_stack()
    model.graph.node.append(helper.make_node("Relu", ["nobody makes it"], ["out"]))
    with pytest.raises(onnx.checker.ValidationError):
        check_whole(model)
