"""What an ONNX model takes: its one image input, by name and size."""

from dataclasses import dataclass

import onnx

from toolchain.errors import ModelError

CHANNELS = 3


@dataclass(frozen=True)
class ImageInput:
    """The only input of a model that takes images.

    Attributes:
        name: of the tensor (B, 3, S, S).
        size: S in pixels; None where the graph leaves it open.
    """

    name: str
    size: int | None


def image_input_of(model: onnx.ModelProto) -> ImageInput:
    """The one image input of a model.

    Raises:
        ModelError: none or several inputs, or one that is no batch of square RGB images, channels first.
    """
    # Old exporters list initializers among the inputs, too.
    constants = {initializer.name for initializer in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(f"The model has {len(inputs)} inputs ({names}), not one: only images can be calibrated on.")
    name, shape = inputs[0].name, inputs[0].type.tensor_type.shape
    dimensions = [d.dim_value if d.HasField("dim_value") else None for d in shape.dim]
    written = " x ".join(str(d or "?") for d in dimensions) or "a scalar"
    if len(dimensions) != 4 or dimensions[1] not in (CHANNELS, None):
        raise ModelError(f"Input '{name}' is {written}, not batch x 3 x height x width: export it channels first.")
    height, width = dimensions[2:]
    if None not in (height, width) and height != width:
        raise ModelError(f"Input '{name}' is {written}: only square images are covered; export it for a square.")
    return ImageInput(name, height or width)
