"""From torch to ONNX: one float graph with a dynamic batch, readable node names and nothing of the machine in it.

Rules:
1. One input, `image` (B, 3, S, S) float32. B is the only dynamic axis, is named `batch`, and leads every output.
2. A node is named `<module path>/<operator>`, `blocks.0.attn.qkv/MatMul`; a second one of the same name gets `_1`.
3. Of the exporter's metadata only the enclosing modules of each node stay (exporters/placement.py reads them). The
   rest goes: it holds stack traces with paths of this machine.
4. The model's metadata is what the caller gives, in key order.
5. The same module gives the same bytes.
6. The module is exported in evaluation mode and handed back in the mode in which it came.
"""

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO

import onnx
import torch
from torch import nn

from exporters.placement import SCOPE_KEY, module_of
from exporters.shape_inference import check_whole
from toolchain.artifacts import versions
from toolchain.errors import ModelError, first_line

INPUT = "image"
BATCH = "batch"
EXAMPLE_BATCH = 2
"""Not 1: torch.export takes a batch of 1 for a constant."""
NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
"""Stands where a module's path should, on the nodes that read the batch from the input's shape (torch 2.13)."""


def onnx_from_torch(
    model: nn.Module,
    *,
    image_size: int,
    metadata: Mapping[str, str],
    opset: int = 20,
    output_names: Sequence[str] = ("logits", "map"),
) -> onnx.ModelProto:
    """Export a module that takes images (B, 3, S, S) float32.

    Args:
        model: from images to a tuple of tensors whose first axis is B, or to one such tensor.
        image_size: S, pixels.
        metadata: to travel in the model's `metadata_props`.
        opset: of the default domain.
        output_names: one for each tensor that the module returns; by default `logits` (B, C) and `map` (B, h, w).

    Returns:
        the checked model, its weights inside.

    Raises:
        ModelError: torch cannot export the module, or what it returns is not what `output_names` promises.
    """
    exported = _exported(model, image_size, opset, output_names)
    _require_outputs(exported, output_names)
    _strip(exported)
    _name_nodes(exported.graph)
    exported.producer_name, exported.producer_version = "lctr", versions()["lctr"]
    for key in sorted(metadata):
        exported.metadata_props.add(key=key, value=metadata[key])
    try:
        check_whole(exported)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"torch exported {type(model).__name__} to an ONNX model that is not valid ({first_line(error)}): "
            "report it with the versions of torch and onnx."
        ) from error
    return exported


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The module in evaluation mode; each of its parts is in its former mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the module's parameters are; the CPU for a module without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _exported(model: nn.Module, image_size: int, opset: int, output_names: Sequence[str]) -> onnx.ModelProto:
    example = torch.zeros(EXAMPLE_BATCH, 3, image_size, image_size, device=device_of(model))
    try:
        with evaluating(model), _quiet():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(output_names),
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch raises whatever its many layers raise, torch.onnx.OnnxExporterError among it
        raise ModelError(
            f"{type(model).__name__} cannot be exported to ONNX ({first_line(error.__cause__ or error)}): "
            "replace what torch.export does not support, and leave the batch dynamic."
        ) from error
    assert program is not None  # dynamo=True always returns one
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch's exporter says unsaid: it talks to torch's developers. Its errors are exceptions and pass.

    Each of torch's loggers has a level of its own, so logging as a whole is held back for as long as it takes. A
    failing torch.export prints each graph that it tried to stderr (torch 2.13), and no option prevents it.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logging.disable(disabled)


def _require_outputs(model: onnx.ModelProto, output_names: Sequence[str]) -> None:
    found = [value.name for value in model.graph.output]
    if found != list(output_names):
        raise ModelError(
            f"The module returns {len(found)} tensors, {', '.join(found)}, where {', '.join(output_names)} were asked "
            "for: name each tensor once."
        )
    for value in model.graph.output:
        first, *others = (dim.dim_param or str(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        if first != BATCH or not all(axis.isdigit() for axis in others):
            raise ModelError(
                f"The output '{value.name}' has the shape ({', '.join([first, *others])}): "
                "its first axis must be the batch, and no other may depend on the input."
            )


def _strip(model: onnx.ModelProto) -> None:
    """Rule 3."""
    graph = model.graph
    initializers = {i.name for i in graph.initializer}
    intermediate = [value for value in graph.value_info if value.name not in initializers]
    del graph.value_info[:]
    graph.value_info.extend(intermediate)
    for holder in (model, graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    for node in graph.node:
        modules = _modules(node)
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        if modules:
            node.metadata_props.add(key=SCOPE_KEY, value=repr(modules))


def _modules(node: onnx.NodeProto) -> list[str]:
    """What torch recorded of where the node comes from: paths of the enclosing modules, then torch's own name of it."""
    recorded = next((p.value for p in node.metadata_props if p.key == SCOPE_KEY), "[]")
    return [path for path in ast.literal_eval(recorded) if path != NO_MODULE]


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Rule 2."""
    seen = Counter[str]()
    for node in graph.node:
        module = module_of(node)
        name = f"{module}/{node.op_type}" if module else node.op_type
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1
