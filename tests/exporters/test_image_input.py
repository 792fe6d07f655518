"""Which input takes images, and what is said where none does."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import attention, conv_net

from exporters.image_input import ImageInput, image_input_of
from toolchain.errors import ModelError


def with_input(*shape, name="pixels", initializers=()):
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
    inputs += [helper.make_tensor_value_info(i.name, TensorProto.FLOAT, i.dims) for i in initializers]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(
        helper.make_graph([helper.make_node("Relu", [name], ["y"])], "g", inputs, [output], initializers)
    )


@pytest.mark.parametrize(
    ("shape", "size"), [(("n", 3, 32, 32), 32), ((4, 3, 32, "w"), 32), (("n", 3, "h", "w"), None), ((None,) * 4, None)]
)
def test_name_and_size(shape, size):
    assert image_input_of(with_input(*shape)) == ImageInput("pixels", size)


def test_an_initializer_among_the_inputs_is_none():
    weight = numpy_helper.from_array(np.zeros(3, np.float32), "weight")
    assert image_input_of(with_input("n", 3, 8, 8, initializers=[weight])).name == "pixels"


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (with_input("n", 32, 32, 3), r"'pixels' is \? x 32 x 32 x 3, not batch x 3 x height x width"),
        (with_input("n", 3, 32, 48), r"'pixels' is \? x 3 x 32 x 48: only square"),
        (with_input("n", 128), r"'pixels' is \? x 128, not"),
        (with_input(), "'pixels' is a scalar, not"),
        (attention(), "'tokens' is"),
    ],
)
def test_no_image_input(model, complaint):
    with pytest.raises(ModelError, match=complaint):
        image_input_of(model)


def test_two_inputs_are_named():
    model = conv_net()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    with pytest.raises(ModelError, match=r"2 inputs \(image, mask\)"):
        image_input_of(model)
