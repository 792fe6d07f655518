"""Types and shapes that ONNX infers for the tensors of a graph, without carrying its weights through the inference."""

import onnx

SMALL = 1024
"""Values of an initializer up to which it may be a shape that the inference has to read."""


def inferred(model: onnx.ModelProto, *, strict: bool = False) -> onnx.GraphProto:
    """The model's graph with a type for every tensor whose type follows, in `value_info`; large initializers are empty.

    ONNX infers on serialized models: 90 MB of weights make it 100 times as slow, and it looks at none of them.

    Args:
        model: not changed.
        strict: whether types that contradict one another, and nodes that cannot be inferred, are errors.

    Raises:
        InferenceError: if `strict`.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    for initializer in model.graph.initializer:
        if _count(initializer) <= SMALL:
            graph.initializer.append(initializer)
        else:
            # As a large one is known to the inference: by its type alone.
            graph.initializer.add(name=initializer.name, data_type=initializer.data_type, dims=initializer.dims)
    return onnx.shape_inference.infer_shapes(light, check_type=strict, strict_mode=strict).graph


def check_whole(model: onnx.ModelProto) -> None:
    """What `onnx.checker.check_model` does with `full_check`, in a fraction of the time.

    Raises:
        ValidationError: the model breaks ONNX's rules.
        InferenceError: its types contradict one another.
    """
    onnx.checker.check_model(model)
    inferred(model, strict=True)


def _count(initializer: onnx.TensorProto) -> int:
    count = 1
    for size in initializer.dims:
        count *= size
    return count
