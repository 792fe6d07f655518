"""The student: a float network with fake quantization, as `toolchain.finetuning.construction` places it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from calib.ranges import KNOWN, Ranges, TensorRange
from calib.teacher import logits_of
from exporters.constants import Constants
from exporters.placement import Placement, Site
from exporters.qdq import graph_hash
from exporters.scales import INT8, Levels
from exporters.torch_export import onnx_from_torch
from toolchain.errors import ParityError, UsageError
from toolchain.finetuning.layers import Phase, QuantizedLayer
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


class Student(nn.Module):
    """A network with fake quantization, always in evaluation mode; made by `construction.student_from_float`.

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
            if not (
                same and np.array_equal(torch_weight(constants, sites[path]), numpy_of(by_path[path].float_weight))
            ):
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


def _quantized(network: nn.Module, path: str) -> QuantizedLayer:
    layer = network.get_submodule(path)
    assert isinstance(layer, QuantizedLayer)
    return layer


def _range_of(quantizer: ActivationQuantizer) -> TensorRange:
    # In double precision, so that the division by the largest level gives the scale back, to the bit.
    amax = float(quantizer.used_scale.detach()) * quantizer.levels.largest
    method = KNOWN if quantizer.known else LEARNED if quantizer.scale.requires_grad else OBSERVED
    return TensorRange(amax, method, quantizer.relative_error, float(quantizer.minimum), float(quantizer.maximum))


def _same_weight(constants: Constants, site: Site, layer: QuantizedLayer) -> bool:
    return np.array_equal(torch_weight(constants, site), numpy_of(layer.float_weight))


def torch_weight(constants: Constants, site: Site) -> np.ndarray:
    """A site's weight with the output channels first, as torch has it."""
    weight = constants.value(site.weight)
    return weight if site.axis == 0 else weight.T


def numpy_of(tensor: Tensor) -> np.ndarray:
    """Off the graph and the device."""
    return np.asarray(tensor.detach().cpu().numpy())
