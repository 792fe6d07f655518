"""A linear or a convolution as the deployed graph computes it: operands quantized, its BatchNorm in its weights."""

from collections.abc import Sequence
from enum import Enum
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.scales import Levels, bias_bound, channel_scales
from toolchain.finetuning.quantizers import ActivationQuantizer, fake_quantize

Product = nn.Linear | nn.Conv2d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class Phase(Enum):
    """What a forward pass does beside its product: nothing, or take ranges, or measure the quantization error."""

    PLAIN = 0
    OBSERVE = 1
    MEASURE = 2


class QuantizedLayer(nn.Module):
    """Stands in for a linear or a convolution, and for the BatchNorm behind it that the exporter folds.

    Args:
        name: of the weight, for messages.
        layer: whose parameters are tuned.
        norm: folded BatchNorm, in evaluation mode; its factor and shift are tuned, too.
        activation: quantizer of the input, shared by all layers that read the same tensor.
        first: whether this is the first of them, which is the one to observe.
        levels: of the weight.
        bounded: whether the bias bounds the weight's scales (rule 8 of `exporters.qdq`).
        exponents: of the equalization's factors, by input channel; empty: none.
    """

    factors: Tensor | None

    def __init__(
        self,
        name: str,
        layer: Product,
        norm: BatchNorm | None,
        activation: ActivationQuantizer,
        *,
        first: bool,
        levels: Levels,
        bounded: bool,
        exponents: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.name, self.levels, self.exponents = name, levels, tuple(exponents)
        self.layer, self.norm, self.activation = layer, norm, activation
        self.phase, self.decay = Phase.PLAIN, 0.0
        self._first, self._bounded = first, bounded
        factors = torch.tensor(self.exponents, dtype=torch.float32).exp2() if exponents else None
        self.register_buffer("factors", factors, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """The product of the quantized input and the quantized weight, with the float bias."""
        if self.factors is not None:
            values = values / self.factors
        if self._first and self.phase is Phase.OBSERVE:
            self.activation.observe(values, self.decay)
        if self._first and self.phase is Phase.MEASURE:
            self.activation.measure(values)
        values = self.activation(values)
        if isinstance(self.layer, nn.Conv2d):
            # As torch's own quantization-aware convolutions do: it alone knows of every padding mode.
            return cast(Tensor, self.layer._conv_forward(values, self.weight, self.bias))
        return F.linear(values, self.weight, self.bias)

    @property
    def weight(self) -> Tensor:
        """On its levels; with the equalization's factors in it."""
        weight = self.float_weight if self.factors is None else self.float_weight * self.factors
        return fake_quantize(weight, self.weight_scales(weight), self.levels)

    @property
    def float_weight(self) -> Tensor:
        """With the BatchNorm's factor in it; the graph is exported with this one."""
        if self.norm is None:
            return self.layer.weight
        return self.layer.weight * self._factor().reshape(-1, *[1] * (self.layer.weight.ndim - 1))

    @property
    def bias(self) -> Tensor | None:
        """Float; with the BatchNorm's shift in it."""
        if self.norm is None:
            return self.layer.bias
        mean = cast(Tensor, self.norm.running_mean)
        shifted = -mean if self.layer.bias is None else self.layer.bias - mean
        folded = shifted * self._factor()
        return folded if self.norm.bias is None else folded + self.norm.bias

    @torch.no_grad()
    def weight_scales(self, weight: Tensor) -> Tensor:
        """By output channel, to broadcast to the weight: the scales that Q/DQ insertion will choose for it."""
        bias, bound = self.bias, np.zeros(1)
        if self._bounded and bias is not None:
            bound = bias_bound(bias.cpu().numpy(), float(self.activation.used_scale.detach()))
        amax = weight.abs().flatten(1).amax(1).cpu().numpy()
        scales = channel_scales(self.name, amax, bound, self.levels).scales
        return torch.from_numpy(scales).to(weight.device).reshape(-1, *[1] * (weight.ndim - 1))

    @torch.no_grad()
    def folded(self) -> Product:
        """A plain layer with the float weight and bias."""
        plain, bias = _like(self.layer, self.bias is not None), self.bias
        plain.weight.copy_(self.float_weight)
        if plain.bias is not None and bias is not None:
            plain.bias.copy_(bias)
        return plain

    def _factor(self) -> Tensor:
        norm = cast(BatchNorm, self.norm)
        factor = torch.rsqrt(cast(Tensor, norm.running_var) + norm.eps)
        return factor if norm.weight is None else factor * norm.weight


def _like(layer: Product, bias: bool) -> Product:
    """A layer of the same shape and type, on the CPU."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features, bias)
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        cast(tuple[int, int], layer.kernel_size),
        cast(tuple[int, int], layer.stride),
        layer.padding if isinstance(layer.padding, str) else cast(tuple[int, int], layer.padding),
        cast(tuple[int, int], layer.dilation),
        layer.groups,
        bias,
        layer.padding_mode,
    )
