"""Equalization: the spread between an activation's channels moves into the weights that read it, before INT8.

One scale serves a whole activation tensor, so a few huge channels leave a handful of levels for all others, while a
weight has a scale per output channel and bears the spread better. Per input channel j of a linear, x_j is divided and
row j of the weight multiplied by the same factor (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438, eq. 4):

    s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)

Rules:
1. Linears alone (MatMul and Gemm sites): their activation's last axis holds the channels. Linears that read one
   activation share its factors, made from the largest |w_j| of all of them.
2. A factor is a power of two, so products, sums and with them the float graph's outputs keep their bits, but for
   overflow and underflow. Factors are normalized to a median of 1, and end where a weight would overflow its type.
3. No factor is under 1: loud channels are quietened, quiet and dead ones stay. Calibration images show that a channel
   can be loud, never that it cannot, and one raised because they left it silent is clipped where others do not.
4. A weight stands in a float32 or float16 initializer that nobody else reads, or its linears and their activation stay
   as they are; so does a graph input, whose range is known from its normalization.
5. Where a LayerNormalization makes the activation and only the linears read it, 1/s goes into new scale and bias
   initializers: no node is added. Old ones that others read stay.
6. Elsewhere one Mul by 1/s stands before the linears, and other readers go on reading the tensor as it was.
7. Where attention is INT8, what a Reshape or Transpose makes stays as it is: it may come from an attention, and a Mul
   behind one makes TensorRT-RTX 1.7 give up its fused kernel.
8. Factors that are all 1 leave an activation and its linears untouched. Names, metadata, inputs and outputs stay.
9. What attention makes takes its factors from the channels of the values that it averages: no average is louder than
   they are. How much quieter it is depends on how peaked attention is, and images that are not real tell that badly.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporters.attention import Channels, averaged_values
from exporters.constants import Constants
from exporters.placement import Site, name_of
from toolchain.errors import ModelError

FLOATS = (np.dtype(np.float32), np.dtype(np.float16))
ALPHA = 0.8
"""Of eq. 4. Signal-to-noise of logits / map under INT8, dB, calibrated on 32 real images (FDDA: 128 synthetic ones):

    alpha               none         0.7          0.8          0.9          1.0
    lctr-small          17.4 / 19.1  24.2 / 21.7  24.7 / 24.1  24.2 / 25.1  23.8 / 22.0
    lctr-small, FP16    17.2 / 18.9               24.7 / 24.0  24.2 / 23.0
    lctr-small, FDDA    19.5 / 20.3  21.7 / 22.4  21.7 / 22.1
    lctr-nano           36.2 / 23.4  36.5 / 26.1  37.6 / 28.1  37.7 / 30.1  37.7 / 28.6

lctr-small of `make finetuned`, on 24 test photographs; lctr-nano as bundled, on 200 images of `shapes`. All of these
without rule 3. With it, and 0.8, lctr-small on 32 other photographs: 24.3 / 25.5 -> 23.9 / 24.8 calibrated on real
images, 18.7 / 15.9 -> 22.2 / 24.1 on 32 synthetic ones, on which one channel in twenty behind a late GELU gets not a
quarter as loud as on real ones.
Rule 9, on 600 images of `shapes`, lctr-nano calibrated on five sets of 128 real images: 37.1 / 28.1 -> 37.0 / 28.9; of
256 synthetic ones, by token statistics: 36.0 / 27.3 -> 37.4 / 29.2, by the guide: 36.2 / 27.2 -> 37.2 / 28.4. A channel
of the values has the range of real images there (0.97 of it in the median), what attention makes of it 0.85.
"""
LARGEST_EXPONENT = 10
"""Of a factor: in FP16 |w| < 64 stays finite under it."""

Exponents = Mapping[str, Sequence[int]]
"""Activation tensor -> exponent of the factor of each channel, the factor being 2 ** exponent."""


@dataclass(frozen=True, eq=False)
class Linears:
    """The linears that read one activation.

    Attributes:
        activation: tensor (..., C).
        sites: of the linears, at least one.
        weight_amax: (C,) largest |w| by input channel, over all of them.
        dtype: of activation and weights.
        channels: that factors are made of: the activation's, or those of the values that it averages (rule 9).
    """

    activation: str
    sites: tuple[Site, ...]
    weight_amax: NDArray[np.float64]
    dtype: np.dtype[np.generic]
    channels: Channels


@dataclass(frozen=True)
class Equalized:
    """What was done to one activation.

    Attributes:
        activation: tensor, as the float model names it.
        how: in words: what the factors were folded into, or the node that applies them.
        linears: nodes whose weights took the factors.
        least: exponent of the least factor.
        largest: exponent of the largest factor.
    """

    activation: str
    how: str
    linears: tuple[str, ...]
    least: int
    largest: int


def equalizable(model: onnx.ModelProto, sites: Sequence[Site], *, int8_attention: bool = False) -> tuple[Linears, ...]:
    """What rules 1, 4 and 7 admit, in graph order.

    Args:
        model: float model, FP32 or FP16.
        sites: of a placement computed from this very model.
        int8_attention: whether attention products are to be quantized.
    """
    moved = (
        {n.output[0] for n in model.graph.node if n.op_type in ("Reshape", "Transpose")} if int8_attention else set()
    )
    constants, initializers = Constants(model), {i.name for i in model.graph.initializer}
    inputs, readers = {value.name for value in model.graph.input}, _readers(model)
    values = averaged_values(model)
    by_activation: dict[str, list[Site]] = {}
    for site in sites:
        if site.kind != "Conv" and site.activation not in inputs | moved:
            by_activation.setdefault(site.activation, []).append(site)
    found = []
    for activation, reading in by_activation.items():
        if not all(site.weight in initializers and readers[site.weight] == 1 for site in reading):
            continue
        weights = [constants.value(site.weight) for site in reading]
        if weights[0].dtype in FLOATS:
            spreads = [np.abs(w.astype(np.float64)).max(s.axis) for w, s in zip(weights, reading, strict=True)]
            amax = np.maximum.reduce(spreads)
            channels = values.get(activation, Channels(activation))
            found.append(Linears(activation, tuple(reading), amax, weights[0].dtype, channels))
    return tuple(found)


def exponents_of(linears: Linears, amax: NDArray[np.floating], alpha: float = ALPHA) -> tuple[int, ...]:
    """Exponents of the factors, one per channel, at least 0 (rules 2 and 3).

    Args:
        linears: that read the activation.
        amax: largest |x| observed in each of `linears.channels`, (C,); of values by head as many as they have.
        alpha: how much of the activation's spread goes into the weights, 0 to 1.

    Raises:
        ModelError: the activation has another number of channels than the weights.
    """
    x, w = np.asarray(amax, np.float64), linears.weight_amax
    if linears.channels.by_head:
        x = _by_input(x, w.size)
    if x.shape != w.shape:
        raise ModelError(
            f"Tensor '{linears.activation}' has {x.size} channels, its weights {w.size}: check the model's shapes."
        )
    alive = (x > 0) & (w > 0) & np.isfinite(w)
    if not alive.any():
        return (0,) * x.size
    wanted = np.rint(alpha * np.log2(x[alive]) - (1 - alpha) * np.log2(w[alive]))
    wanted -= np.rint(np.median(wanted))
    top = math.log2(float(np.finfo(linears.dtype.name).max))
    largest = np.minimum(np.floor(top - np.log2(w[alive])), LARGEST_EXPONENT)
    exponents = np.zeros(x.size, np.int64)
    exponents[alive] = np.clip(wanted, 0, largest)
    return tuple(exponents.tolist())


def _by_input(amax: NDArray[np.float64], channels: int) -> NDArray[np.float64]:
    """Of the values of all heads, (H * D,), as the linears read them: side by side, one for all, or head by head."""
    if channels % amax.size == 0:
        return np.tile(amax, channels // amax.size)
    largest: NDArray[np.float64] = amax.reshape(-1, channels).max(0) if amax.size % channels == 0 else amax
    return largest


def equalized_from_float(
    model: onnx.ModelProto, sites: Sequence[Site], exponents: Exponents
) -> tuple[onnx.ModelProto, tuple[Equalized, ...]]:
    """Rewrite a float graph so that it computes the same from more even activations; the model given is not changed.

    Args:
        model: float model, FP32 or FP16.
        sites: of a placement computed from this very model.
        exponents: of the activations to equalize.

    Returns:
        the model, and what was done in graph order.

    Raises:
        ModelError: exponents of a tensor that cannot be equalized, or that has another number of channels.
    """
    admitted = {linears.activation: linears for linears in equalizable(model, sites)}
    for name, given in exponents.items():
        if name not in admitted or len(given) != admitted[name].weight_amax.size:
            raise ModelError(f"Tensor '{name}' cannot take its {len(given)} factors here: compute the ranges again.")
    rewrite = _Rewrite(model)
    done = [
        rewrite.equalize(linears, np.array(exponents[name]))
        for name, linears in admitted.items()
        if any(exponents.get(name, ()))
    ]
    return rewrite.finished(), tuple(done)


class _Rewrite:
    """A copy of the model, equalized one activation after the other."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        graph = self._model.graph
        self._constants, self._readers = Constants(model), _readers(model)
        self._initializers = {i.name: i for i in graph.initializer}
        self._nodes = {node.output[0]: node for node in graph.node}
        self._names = {*self._initializers, *(v.name for v in graph.input), *(o for n in graph.node for o in n.output)}
        self._muls: dict[str, onnx.NodeProto] = {}

    def equalize(self, linears: Linears, exponents: NDArray[np.int64]) -> Equalized:
        """Multiply the weights' rows, divide the activation's channels."""
        for site in linears.sites:
            weight = self._constants.value(site.weight)
            # Input channels stand on the axis that the output channels do not.
            column = exponents.reshape(-1, 1) if site.axis == 1 else exponents
            scaled = np.ldexp(weight, column).astype(weight.dtype)
            self._initializers[site.weight].CopyFrom(numpy_helper.from_array(scaled, site.weight))
        norm = self._foldable(linears)
        how = self._fold(norm, exponents) if norm is not None else self._multiply(linears, exponents)
        names = tuple(site.name for site in linears.sites)
        return Equalized(linears.activation, how, names, int(exponents.min()), int(exponents.max()))

    def finished(self) -> onnx.ModelProto:
        """The rewritten model, without the initializers that only the unfolded LayerNormalizations read."""
        graph = self._model.graph
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            # Before the first of its readers.
            nodes += [self._muls.pop(name) for name in node.input if name in self._muls]
            nodes.append(node)
        del graph.node[:]
        graph.node.extend(nodes)
        after = _readers(self._model)
        kept = [i for i in graph.initializer if after[i.name] or not self._readers[i.name]]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        return self._model

    def _foldable(self, linears: Linears) -> onnx.NodeProto | None:
        """The LayerNormalization that rule 5 admits."""
        norm = self._nodes.get(linears.activation)
        if norm is None or norm.op_type != "LayerNormalization" or norm.domain:
            return None
        axis = next((a.i for a in norm.attribute if a.name == "axis"), -1)
        vectors = [name for name in norm.input[1:] if name]
        channels = linears.weight_amax.shape
        constant = all(self._constants.has(v) and self._constants.value(v).shape == channels for v in vectors)
        alone = self._readers[linears.activation] == len(linears.sites)
        return norm if axis == -1 and constant and alone else None

    def _fold(self, norm: onnx.NodeProto, exponents: NDArray[np.int64]) -> str:
        for at, role in ((1, "scale"), (2, "bias")):
            if at < len(norm.input) and norm.input[at]:
                value = self._constants.value(norm.input[at])
                divided = np.ldexp(value, -exponents).astype(value.dtype)
                norm.input[at] = self._constant(f"{norm.output[0]}/equalize/{role}", divided)
        return f"folded into {name_of(norm)}"

    def _multiply(self, linears: Linears, exponents: NDArray[np.int64]) -> str:
        name, output = f"{linears.activation}/equalize", f"{linears.activation}/equalized"
        self._take(output)
        factor = self._constant(f"{name}/factor", np.ldexp(1.0, -exponents).astype(linears.dtype))
        self._muls[output] = helper.make_node("Mul", [linears.activation, factor], [output], name)
        for site in linears.sites:
            self._nodes[site.output].input[0] = output
        return f"Mul {name}"

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self._take(name)
        self._model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _take(self, name: str) -> None:
        if name in self._names:
            raise ModelError(f"The model has a tensor named '{name}' already: rename it before quantizing.")
        self._names.add(name)


def _readers(model: onnx.ModelProto) -> Counter[str]:
    """How often each tensor is read, by nodes at any depth and by the caller."""
    return Counter([*_read(model.graph), *(value.name for value in model.graph.output)])


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _read(inner)
                yield from (value.name for value in inner.output)
