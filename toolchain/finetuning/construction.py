"""From a float network to a student: fake quantization at exactly the places where the deployed graph has Q/DQ.

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
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from exporters.constants import Constants
from exporters.placement import Placement, Site, casts_of
from exporters.scales import levels_of_bits
from exporters.torch_export import INPUT
from toolchain.errors import ModelError, UsageError
from toolchain.finetuning.layers import BatchNorm, Product, QuantizedLayer
from toolchain.finetuning.quantizers import ActivationQuantizer
from toolchain.finetuning.student import Bits, Form, Student, numpy_of, torch_weight
from toolchain.quantization import equalized_of, exponents_on

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class _Place:
    """A site, and the parts of the network that it was exported from: paths of the product and its BatchNorm."""

    site: Site
    path: str
    norm: str


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
    exponents = _exponents(graph, equalize_on) if equalize_on is not None else {}
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
        if not (own and (place.norm or np.array_equal(torch_weight(constants, place.site), _weight_of(product)))):
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


def _exponents(graph: "onnx.ModelProto", images: Tensor) -> dict[str, tuple[int, ...]]:
    """Activation -> factors' exponents, as `lctr quantize` finds them on the same images (rule 6)."""
    batches = (some.cpu().numpy() for some in images.split(16))
    with tempfile.TemporaryDirectory() as folder:
        return exponents_on(graph, Path(folder) / "observer.onnx", batches, input_name=INPUT, images=len(images))


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


def _weight_of(module: nn.Module | None) -> np.ndarray:
    return numpy_of(module.weight) if isinstance(module, Product) else np.empty(0)
