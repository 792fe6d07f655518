"""The student: a float network with fake quantization at exactly the places where the deployed graph has Q/DQ.

Rules:
1. The places are those of `exporters.placement` on the network's own export; what is left float there is float here.
2. A site's product must be a Linear or a Conv2d of the network, called once, its weight its own. One that is not, as a
   functional product of bare parameters, has to be kept float, and the error says how.
3. A BatchNorm that the exporter folded is folded here, in every forward pass, from its frozen statistics. So what is
   quantized is the folded weight, and what is tuned are the weight and the BatchNorm's factor and shift apart.
4. Layers that read one tensor share its quantizer. It has the bits of the reader with the most.
5. The range of the image input is known, where the caller knows the normalization; no image is asked.
6. Equalization (exporters/equalization.py) is part of the student: powers of two on a layer's input and weight. Its
   parameters stay those of the float network, and a Q/DQ insertion with the same exponents rewrites the graph.
7. The first and the last product may have bits of their own (spec/fdda.md, "first and last at 8 bit").
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from calib.channels import IMAGES
from calib.ranges import KNOWN, Ranges, TensorRange
from calib.teacher import logits_of
from exporters.equalization import equalizable, exponents_of
from exporters.placement import Constants, Placement, Site, casts_of
from exporters.qdq import graph_hash
from exporters.scales import INT8, Levels, levels_of_bits
from exporters.torch_export import INPUT, evaluating, onnx_from_torch
from toolchain.errors import ModelError, ParityError, UsageError
from toolchain.finetuning.layers import BatchNorm, Phase, Product, QuantizedLayer
from toolchain.finetuning.quantizers import ActivationQuantizer
from toolchain.quantization import equalized_of, placement_of

if TYPE_CHECKING:
    import onnx

BITS = range(4, 9)
OBSERVED, LEARNED = "ema", "learned"
"""Methods of a student's ranges, beside `known`."""


@dataclass(frozen=True)
class Bits:
    """Of the quantizers.

    Attributes:
        weights: 4 to 8.
        activations: 4 to 8.
        first_last: of both in the first and the last product.
    """

    weights: int = 8
    activations: int = 8
    first_last: int = 8

    def __post_init__(self) -> None:
        for name, bits in (("weight", self.weights), ("activation", self.activations), ("first-last", self.first_last)):
            if bits not in BITS:
                raise UsageError(f"--{name}-bits {bits} cannot be: give {BITS[0]} to {BITS[-1]}.")


@dataclass(frozen=True)
class Form:
    """How a network is exported.

    Attributes:
        image_size: side of its input, pixels.
        metadata: that travels in the graph; a localizer's card.
        output_names: of the graph; the first are the logits.
        largest_pixel: largest magnitude of a normalized pixel; None: it is observed like any other range.
        keep_float: patterns of products to leave float, as for `lctr quantize`.
    """

    image_size: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    output_names: tuple[str, ...] = ("logits",)
    largest_pixel: float | None = None
    keep_float: tuple[str, ...] = ()

    def graph_of(self, network: nn.Module) -> "onnx.ModelProto":
        """The float graph of a network."""
        size, names = self.image_size, self.output_names
        return onnx_from_torch(network, image_size=size, metadata=self.metadata, output_names=names)

    def placement_in(self, graph: "onnx.ModelProto") -> Placement:
        """Where its Q/DQ stands."""
        return placement_of(graph, self.keep_float)


@dataclass(frozen=True)
class _Place:
    """A site, and the parts of the network that it was exported from: paths of the product and its BatchNorm."""

    site: Site
    path: str
    norm: str


class Student(nn.Module):
    """A network with fake quantization, always in evaluation mode; made by `student_from_float`.

    Args:
        network: whose products are `layers` now.
        form: how it is exported.
        layers: by path, in graph order.
        norms: path of a folded BatchNorm -> path of the layer that holds it.
    """

    def __init__(
        self, network: nn.Module, form: Form, layers: Mapping[str, QuantizedLayer], norms: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.network, self.form = network, form
        self._paths, self._norms = tuple(layers), dict(norms)
        self.requires_grad_(True)
        for layer in self.layers:
            layer.activation.scale.requires_grad_(False)
        self.eval()

    @property
    def layers(self) -> list[QuantizedLayer]:
        """Quantized products in graph order."""
        return [_quantized(self.network, path) for path in self._paths]

    @property
    def quantizers(self) -> list[ActivationQuantizer]:
        """Of the activations, each once, in graph order."""
        return list(dict.fromkeys(layer.activation for layer in self.layers))

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (B, 3, S, S) -> logits (B, C)."""
        return logits_of(self.network, images)

    def train(self, mode: bool = True) -> "Student":
        """Stay in evaluation mode: BatchNorm's statistics are the teacher's, and nothing is dropped."""
        return super().train(False)

    def phase(self, phase: Phase, decay: float = 0.0) -> None:
        """What the next forward passes do beside the products."""
        for layer in self.layers:
            layer.phase, layer.decay = phase, decay

    def learn_scales(self, learned: bool) -> None:
        """Whether the activations' scales are tuned; known ones never are."""
        for quantizer in self.quantizers:
            quantizer.scale.requires_grad_(learned and not quantizer.known)

    def plain(self) -> nn.Module:
        """The float network to export, on the CPU: every BatchNorm that the graph folds is folded."""
        network = copy.deepcopy(self.network).cpu()
        for path in self._paths:
            network.set_submodule(path, _quantized(network, path).folded(), strict=True)
        return network.eval()

    def network_state(self) -> dict[str, Tensor]:
        """The tuned parameters under the names that the float network has for them."""
        homes = {f"{path}.layer.": f"{path}." for path in self._paths}
        homes |= {f"{path}.norm.": f"{norm}." for norm, path in self._norms.items()}
        quantizers = tuple(f"{path}.activation." for path in self._paths)
        state = {}
        for name, value in self.network.state_dict().items():
            if not name.startswith(quantizers):
                home = next((home for home in homes if name.startswith(home)), "")
                own = homes.get(home, "") + name.removeprefix(home)
                state[own] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return state

    def ranges(self, graph: "onnx.ModelProto", images: int) -> Ranges:
        """What Q/DQ insertion has to know to make of a float graph what this student computes.

        Args:
            graph: exported from `plain()`, or from what its parameters were copied to.
            images: that the ranges were observed on.

        Raises:
            ParityError: a weight of the graph is not the student's, bit for bit.
        """
        sites, constants = {s.module: s for s in self.form.placement_in(graph).sites}, Constants(graph)
        by_path = dict(zip(self._paths, self.layers, strict=True))
        for path in {**by_path, **sites}:
            same = path in by_path and path in sites
            if not (same and np.array_equal(_torch_weight(constants, sites[path]), _numpy(by_path[path].float_weight))):
                raise ParityError(
                    f"The product at '{path}' is not what was fine-tuned: the graph was not exported from this "
                    "student, or the export places or folds it otherwise; keep it float with --keep-float."
                )
        exponents = {
            site.activation: by_path[path].exponents for path, site in sites.items() if any(by_path[path].exponents)
        }
        even, _ = equalized_of(graph, exponents)
        tensors: dict[str, TensorRange] = {}
        levels: dict[str, Levels] = {}
        for site in self.form.placement_in(even).sites:
            layer = by_path[site.module]
            tensors[site.activation] = _range_of(layer.activation)
            levels |= {site.activation: layer.activation.levels, site.weight: layer.levels}
        narrow = {name: (held.least, held.largest) for name, held in levels.items() if held != INT8}
        return Ranges(graph_hash(graph), OBSERVED, images, tensors, exponents, narrow)


def student_from_float(network: nn.Module, form: Form, bits: Bits, equalize_on: Tensor | None = None) -> Student:
    """A student of the network; the network given is not changed.

    Args:
        network: from normalized images (B, 3, S, S) to logits, or to a tuple that begins with them.
        form: how it is exported.
        bits: of weights and activations.
        equalize_on: normalized images to choose equalization's factors on; None: no equalization.

    Raises:
        ModelError: a product cannot be quantized in torch as it is in the graph (rule 2), or the export fails.
        UsageError: a pattern to keep float matches nothing, or nothing is left to quantize.
    """
    graph = form.graph_of(network)
    places = _places(network, graph, form.placement_in(graph))
    exponents = _exponents(network, graph, places, equalize_on) if equalize_on is not None else {}
    even, _ = equalized_of(graph, exponents)
    tuned = copy.deepcopy(network)
    quantizers = _quantizers(even, form, bits)
    layers: dict[str, QuantizedLayer] = {}
    observed = set[str]()
    # Equalization keeps the sites and their order, and renames what some of them read.
    for index, (place, site) in enumerate(zip(places, form.placement_in(even).sites, strict=True)):
        weight_bits = bits.first_last if index in (0, len(places) - 1) else bits.weights
        product, norm = tuned.get_submodule(place.path), tuned.get_submodule(place.norm) if place.norm else None
        assert isinstance(product, Product)
        assert norm is None or isinstance(norm, BatchNorm)
        layers[place.path] = QuantizedLayer(
            site.weight,
            product,
            norm,
            quantizers[site.activation],
            first=site.activation not in observed,
            levels=levels_of_bits(weight_bits, signed=True),
            bounded=bool(site.bias),
            exponents=exponents.get(place.site.activation, ()),
        )
        observed.add(site.activation)
    for place in places:
        tuned.set_submodule(place.path, layers[place.path], strict=True)
        if place.norm:
            tuned.set_submodule(place.norm, nn.Identity(), strict=True)
    return Student(tuned, form, layers, {place.norm: place.path for place in places if place.norm})


def _places(network: nn.Module, graph: "onnx.ModelProto", placement: Placement) -> list[_Place]:
    """Where the sites' products stand in the network (rules 2 and 3)."""
    if not placement.sites:
        raise UsageError("The network has no linear or convolution left to quantize: keep fewer of them float.")
    modules, constants = dict(network.named_modules()), Constants(graph)
    places = [_place(site, modules) for site in placement.sites]
    taken, parameters = set[str](), set[int]()
    for place in places:
        product = modules.get(place.path)
        own = isinstance(product, Product) and id(product.weight) not in parameters and place.path not in taken
        # A folded weight was computed by the exporter; what it is here is checked against the graph of `plain()`.
        if not (own and (place.norm or np.array_equal(_torch_weight(constants, place.site), _weight_of(product)))):
            raise ModelError(
                f"The product {place.site.name} is no Linear or Conv2d that is called once with a weight of its own "
                f"(found at '{place.path}': {type(product).__name__}): keep it float with --keep-float "
                f"'{place.site.name}'."
            )
        taken.add(place.path)
        parameters.add(id(getattr(product, "weight", None)))
    return places


def _place(site: Site, modules: Mapping[str, nn.Module]) -> _Place:
    """The exporter names a folded convolution for its BatchNorm, and its weight still for the convolution."""
    if isinstance(modules.get(site.module), BatchNorm):
        return _Place(site, site.weight.removesuffix(".weight"), site.module)
    return _Place(site, site.module, "")


def _exponents(
    network: nn.Module, graph: "onnx.ModelProto", places: Sequence[_Place], images: Tensor
) -> dict[str, tuple[int, ...]]:
    """Activation -> factors' exponents, from what the float network's layers read on the first images (rule 6)."""
    admitted = {linears.activation: linears for linears in equalizable(graph, placement_of(graph, ()).sites)}
    watched = {p.site.activation: network.get_submodule(p.path) for p in places if p.site.activation in admitted}
    amax: dict[str, Tensor] = {}

    def watch(activation: str, values: Tensor) -> None:
        largest = values.detach().abs().flatten(0, -2).amax(0).double().cpu()
        amax[activation] = torch.maximum(amax.get(activation, largest), largest)

    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs[0]))
        for name, module in watched.items()
    ]
    try:
        with evaluating(network), torch.no_grad():
            for some in images[:IMAGES].split(16):
                network(some)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: exponents_of(admitted[name], largest.numpy()) for name, largest in amax.items()}
    return {name: exponents for name, exponents in found.items() if any(exponents)}


def _quantizers(even: "onnx.ModelProto", form: Form, bits: Bits) -> dict[str, ActivationQuantizer]:
    """Of each activation (rules 4, 5 and 7)."""
    sites = form.placement_in(even).sites
    images = casts_of(even, INPUT) if form.largest_pixel is not None else ()
    most: dict[str, int] = {}
    for index, site in enumerate(sites):
        wanted = bits.first_last if index in (0, len(sites) - 1) else bits.activations
        most[site.activation] = max(wanted, most.get(site.activation, 0))
    return {
        name: ActivationQuantizer(name, width, form.largest_pixel if name in images else None)
        for name, width in most.items()
    }


def _quantized(network: nn.Module, path: str) -> QuantizedLayer:
    layer = network.get_submodule(path)
    assert isinstance(layer, QuantizedLayer)
    return layer


def _range_of(quantizer: ActivationQuantizer) -> TensorRange:
    # In double precision, so that the division by the largest level gives the scale back, to the bit.
    amax = float(quantizer.used_scale.detach()) * quantizer.levels.largest
    method = KNOWN if quantizer.known else LEARNED if quantizer.scale.requires_grad else OBSERVED
    return TensorRange(amax, method, quantizer.relative_error, float(quantizer.minimum), float(quantizer.maximum))


def _torch_weight(constants: Constants, site: Site) -> np.ndarray:
    """A site's weight with the output channels first, as torch has it."""
    weight = constants.value(site.weight)
    return weight if site.axis == 0 else weight.T


def _weight_of(module: nn.Module | None) -> np.ndarray:
    return _numpy(module.weight) if isinstance(module, Product) else np.empty(0)


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().numpy())
