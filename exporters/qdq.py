"""Q/DQ insertion: a float graph, a placement and ranges in; the same graph with explicit int8 out.

Rules:
1. Symmetric int8, zero point 0, scale = amax / 127 (spec/tensorrt.md: a zero point other than 0 is refused).
2. One Q/DQ pair per activation tensor, per-tensor scale; all sites that read the tensor share it. Readers that are no
   sites (a residual add, a kept linear) go on reading the float tensor. Both operands of a product of attention are
   activations (rule 4 of the placement).
3. A weight stays float and gets Q + DQ per output channel, never a pre-quantized initializer: TensorRT compiles a
   packed qkv with an int8 initializer silently as an FP16 product.
4. A bias stays float: TensorRT takes no int32 bias.
5. Scales have the type of the tensor that they scale: an FP32 scale on FP16 fails at a convolution's bias.
6. A site whose activation has no range is an error; unobserved is never zero.
7. An activation that was 0 everywhere takes the least usable scale, and the report names it: whatever else comes is
   clipped to (almost) 0, which is what was observed.
8. An all-zero weight channel takes the scale of its tensor's largest channel: any scale is exact for zeros.
   And activation scale x weight scale >= |bias| / 2^30 in every channel, by a larger weight scale where needed: ONNX
   Runtime turns the bias of a fused convolution into int32 units of that product and lets it overflow (1.32: the
   bias of a dead channel was lost). What a weight loses is under 2^-24 of the bias per product.
9. A Gather along the output channels of a quantized weight reads its int8 levels and their scales: the values are
   those that the product sees, and the engine holds no float copy of the weight (spec/lctr.md, "Logits without the
   class maps"). Gathering from the dequantized weight instead makes ONNX Runtime dequantize all of it on each run.
10. Metadata, names, inputs and outputs stay; the same input gives the same bytes.
11. Fewer than 8 bits are carried in int8, where no engine computes faster for it: scale = amax / largest level, and a
    Clip in front of an activation's Q keeps its levels. A weight needs none: its largest magnitude sets the scale.
    ONNX's INT4 is not used: TensorRT takes it for weights alone.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporters.constants import Constants
from exporters.placement import AttentionSite, Left, Placement, Site, name_of
from exporters.scales import INT8, Levels, activation_scale, bias_bound, channel_amax, channel_scales
from exporters.shape_inference import check_whole, inferred
from toolchain.errors import ModelError

ALL_INT8: Mapping[str, Levels] = MappingProxyType({})


@dataclass(frozen=True)
class Quantized:
    """What insertion did.

    Attributes:
        sites: linears and convolutions that are quantized now.
        attention: attention that is quantized now, whole.
        left: what was left float, and why.
        scales: activation tensor -> scale.
        zero_activations: activations that were 0 on every image (rule 7).
        zero_channels: weight and axis, `W/axis1` -> how many of its output channels are all 0, if any (rule 8).
        widened_channels: weight and axis -> in how many of them the bias raised the scale, if in any (rule 8).
        gathers: Gather nodes that read int8 levels now (rule 9).
    """

    sites: tuple[Site, ...]
    attention: tuple[AttentionSite, ...]
    left: tuple[Left, ...]
    scales: Mapping[str, float]
    zero_activations: tuple[str, ...]
    zero_channels: Mapping[str, int]
    widened_channels: Mapping[str, int]
    gathers: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all products that are quantized now."""
        return (*(site.name for site in self.sites), *(name for site in self.attention for name in site.names))


def observer_from_float(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of the model that returns `tensors` beside its own outputs; its nodes are unchanged.

    Graph inputs among `tensors` are not added: whoever feeds them sees them already.

    Raises:
        ModelError: no node makes one of the tensors.
    """
    made = {output for node in model.graph.node for output in node.output}
    inputs = {value.name for value in model.graph.input}
    unknown = [name for name in tensors if name not in made | inputs]
    if unknown:
        raise ModelError(f"The model has no tensor '{unknown[0]}': compute the placement from this very model.")
    observer = onnx.ModelProto()
    observer.CopyFrom(model)
    present = {value.name for value in model.graph.output}
    types = {value.name: value for value in inferred(model).value_info}
    for name in dict.fromkeys(tensors):
        if name in made and name not in present:
            observer.graph.output.append(types.get(name) or onnx.ValueInfoProto(name=name))
    return observer


def qdq_from_float(
    model: onnx.ModelProto,
    placement: Placement,
    amax: Mapping[str, float],
    levels: Mapping[str, Levels] = ALL_INT8,
) -> tuple[onnx.ModelProto, Quantized]:
    """Insert Q/DQ; the model given is not changed.

    Args:
        model: float model, FP32 or FP16.
        placement: computed from this very model.
        amax: activation tensor -> largest magnitude to represent, in the tensor's unit.
        levels: activation or weight tensor -> its levels, where they are not int8's (rule 11).

    Returns:
        the model with Q/DQ, checked, and what was done.

    Raises:
        ModelError: the placement is of another model, a tensor has no range or an unusable one.
    """
    _require(model, placement, amax)
    constants = Constants(model)
    types = _types(model, placement, constants)
    scales = {name: activation_scale(name, amax[name], dtype, levels.get(name, INT8)) for name, dtype in types.items()}
    inserted = _Inserted(_tensor_names(model))
    for name, scale in scales.items():
        held = np.array(scale, types[name])
        inserted.pair(inserted.clip(name, held, levels[name]) if name in levels else name, name, held, axis=None)
    zero_channels, widened_channels, gathers = {}, {}, list[str]()
    for base, readers in _readers_of_weights(placement).items():
        site, weight = readers[0], constants.value(readers[0].weight)
        biases = [(r.bias, r.activation) for r in readers if r.bias and constants.has(r.bias)]
        bounds = [bias_bound(constants.value(bias), scales[activation]) for bias, activation in biases]
        largest, least = channel_amax(weight, site.axis), reduce(np.maximum, bounds, np.zeros(1))
        channels = channel_scales(site.weight, largest, least, levels.get(site.weight, INT8))
        inserted.pair(site.weight, base, channels.scales, site.axis)
        for gather in _gathers(model, site.weight, site.axis, weight.ndim):
            gathers.append(name_of(gather))
            inserted.gather(gather, base, channels.scales, weight.ndim - 1 - site.axis)
        zero_channels[base] = channels.zero
        widened_channels[base] = channels.widened
    quantized = _rewired(model, placement, inserted)
    _check(quantized)
    return quantized, Quantized(
        sites=placement.sites,
        attention=placement.attention,
        left=placement.left,
        scales=scales,
        zero_activations=tuple(name for name in scales if amax[name] == 0),
        zero_channels={name: count for name, count in zero_channels.items() if count},
        widened_channels={name: count for name, count in widened_channels.items() if count},
        gathers=tuple(gathers),
    )


def graph_hash(model: onnx.ModelProto) -> str:
    """sha256 of what the graph computes and of its tensors' names: nodes, initializers, inputs, outputs, opsets.

    Node names, metadata, doc strings, producer and recorded shapes do not count, nor does the way in which an
    initializer is stored.
    """
    digest = hashlib.sha256()
    for opset in sorted((o.domain, o.version) for o in model.opset_import):
        digest.update(repr(opset).encode())
    for initializer in sorted(model.graph.initializer, key=lambda i: i.name):
        array = numpy_helper.to_array(initializer)
        digest.update(repr((initializer.name, initializer.data_type, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    for node in model.graph.node:
        head = (node.domain, node.op_type, list(node.input), list(node.output))
        digest.update(repr(head).encode())
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            digest.update(attribute.SerializeToString(deterministic=True))
    for value in (*model.graph.input, *model.graph.output):
        digest.update(value.name.encode() + value.type.SerializeToString(deterministic=True))
    return digest.hexdigest()


class _Inserted:
    """What comes into the graph: the Q/DQ pairs, and what takes the place of a Gather."""

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self.initializers: list[TensorProto] = []
        self.pairs: dict[str, list[onnx.NodeProto]] = {}
        self.gathered: dict[str, tuple[str, list[onnx.NodeProto]]] = {}

    def pair(self, tensor: str, base: str, scale: NDArray[np.generic], axis: int | None) -> None:
        """Q and DQ of `tensor`, under names that start with `base`."""
        output, levels, zero_name = self._new(dequantized(base), _levels(base), f"{base}/zero_point")
        inputs = [self._constant(f"{base}/scale", scale), zero_name]
        self.initializers.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), zero_name))
        self.pairs[base] = [
            *self.pairs.pop(base, []),
            helper.make_node("QuantizeLinear", [tensor, *inputs], [levels], f"{base}/QuantizeLinear", axis=axis),
            helper.make_node("DequantizeLinear", [levels, *inputs], [output], f"{base}/DequantizeLinear", axis=axis),
        ]

    def clip(self, tensor: str, scale: NDArray[np.generic], levels: Levels) -> str:
        """A Clip of `tensor` to what its levels stand for; returns the tensor for the pair to read (rule 11)."""
        (output,) = self._new(f"{tensor}/clipped")
        ends = (("least", levels.least), ("largest", levels.largest))
        bounds = [
            self._constant(f"{tensor}/{end}", np.multiply(scale, level, dtype=scale.dtype)) for end, level in ends
        ]
        self.pairs[tensor] = [helper.make_node("Clip", [tensor, *bounds], [output], f"{tensor}/Clip")]
        return output

    def gather(self, node: onnx.NodeProto, base: str, scales: NDArray[np.generic], trailing: int) -> None:
        """In place of a Gather of channels: Gather of levels x Gather of scales, both of the pair `base` (rule 9).

        DequantizeLinear cannot do it: its scale must be constant for TensorRT.

        Args:
            node: the Gather.
            base: of the weight's pair.
            scales: (C,).
            trailing: axes of the weight after the channels', over which a channel's scale is spread.
        """
        (output,), indices = node.output, node.input[1]
        levels, values, scale = self._new(f"{output}/levels", f"{output}/values", f"{output}/scale")
        column = self._constant(f"{output}/scales", scales.reshape(-1, *[1] * trailing))
        first = onnx.NodeProto()
        first.CopyFrom(node)
        first.input[0], first.output[0] = _levels(base), levels
        to = helper.np_dtype_to_tensor_dtype(scales.dtype)
        self.gathered[output] = (
            base,
            [
                first,
                helper.make_node("Cast", [levels], [values], f"{output}/Cast", to=to),
                helper.make_node("Gather", [column, indices], [scale], f"{output}/Gather", axis=0),
                helper.make_node("Mul", [values, scale], [output], f"{output}/Mul"),
            ],
        )

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.initializers.append(numpy_helper.from_array(value, *self._new(name)))
        return name

    def _new(self, *names: str) -> tuple[str, ...]:
        taken = self._names.intersection(names)
        if taken:
            raise ModelError(f"The model has a tensor named '{min(taken)}' already: rename it before quantizing.")
        self._names.update(names)
        return names


def dequantized(base: str) -> str:
    """The name of the tensor that sites read instead."""
    return f"{base}/dequantized"


def _levels(base: str) -> str:
    return f"{base}/quantized"


def _weight_base(site: Site) -> str:
    # With the axis: a weight that two layers share may be read as (K, N) by one and as (N, K) by the other.
    return f"{site.weight}/axis{site.axis}"


def _operands(placement: Placement) -> dict[str, tuple[str, str]]:
    """Output of each quantized product -> base names of the pairs that it reads."""
    products = {site.output: (site.activation, _weight_base(site)) for site in placement.sites}
    attention = [pair for site in placement.attention for pair in zip(site.outputs, site.operands, strict=True)]
    return products | dict(attention)


def _types(model: onnx.ModelProto, placement: Placement, constants: Constants) -> dict[str, np.dtype[np.generic]]:
    """Of each activation: what its weight is, or what it is recorded to be where it meets no weight (rule 5)."""
    types = {site.activation: constants.value(site.weight).dtype for site in placement.sites}
    met = set(placement.activations) - set(types)
    graph = inferred(model) if met else model.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.name in met:
            types[value.name] = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    unknown = met - set(types)
    if unknown:
        raise ModelError(f"The type of tensor '{min(unknown)}' is not recorded: export the model with its shapes.")
    return types


def _readers_of_weights(placement: Placement) -> dict[str, list[Site]]:
    """Base name of a weight's pair -> the sites that read it."""
    readers: dict[str, list[Site]] = {}
    for site in placement.sites:
        readers.setdefault(_weight_base(site), []).append(site)
    return readers


def _gathers(model: onnx.ModelProto, weight: str, axis: int, rank: int) -> Iterator[onnx.NodeProto]:
    """The Gather nodes that pick output channels of a weight."""
    for node in model.graph.node:
        if node.op_type == "Gather" and not node.domain and node.input[0] == weight:
            chosen = next((a.i for a in node.attribute if a.name == "axis"), 0)
            if chosen % rank == axis:
                yield node


def _rewired(model: onnx.ModelProto, placement: Placement, inserted: _Inserted) -> onnx.ModelProto:
    """The copy in which every site reads dequantized tensors, each pair standing before its first reader."""
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    quantized.graph.initializer.extend(inserted.initializers)
    multiplied = _operands(placement)
    pending = dict(inserted.pairs)
    nodes: list[onnx.NodeProto] = []
    for node in quantized.graph.node:
        base, gather = inserted.gathered.get(node.output[0], ("", [node]))
        for position, operand in enumerate(multiplied.get(node.output[0], ())):
            nodes += pending.pop(operand, [])
            node.input[position] = dequantized(operand)
        nodes += [*pending.pop(base, []), *gather]
    del quantized.graph.node[:]
    quantized.graph.node.extend(nodes)
    return quantized


def _check(quantized: onnx.ModelProto) -> None:
    try:
        check_whole(quantized)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"The quantized graph is not valid ONNX ({error}): check the float model first.") from error


def _tensor_names(model: onnx.ModelProto) -> set[str]:
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    return made | {value.name for value in graph.input} | {initializer.name for initializer in graph.initializer}


def _require(model: onnx.ModelProto, placement: Placement, amax: Mapping[str, float]) -> None:
    """The placement's own model, and rule 6."""
    operands = {node.output[0]: list(node.input[:2]) for node in model.graph.node}
    placed = [(s.name, s.output, (s.activation, s.weight)) for s in placement.sites]
    for attention in placement.attention:
        placed += zip(attention.names, attention.outputs, attention.operands, strict=True)
    for name, output, expected in placed:
        if operands.get(output) != [*expected]:
            raise ModelError(f"The placement's '{name}' is not in the model: compute it from this very model.")
    missing = [tensor for tensor in placement.activations if tensor not in amax]
    if missing:
        raise ModelError(f"Tensor '{missing[0]}' has no range: it was not observed; compute the ranges of this model.")
