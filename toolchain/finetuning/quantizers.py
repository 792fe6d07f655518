"""Fake quantization: what a Q/DQ pair makes of a float value, and how a gradient passes it.

torch's own fake-quantize operators multiply with the reciprocal of the scale, where ONNX's QuantizeLinear divides. Next
to the middle between two levels the two give different levels, so a network tuned with torch's is not, bit for bit, the
one that is deployed. The forward pass here is QuantizeLinear's; the gradients are those of torch's operators.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function

from exporters.scales import LEAST_SCALES, Levels, activation_scale, levels_of_bits
from toolchain.errors import ModelError

SINGLE = np.dtype(np.float32)


def fake_quantize(values: Tensor, scale: Tensor, levels: Levels) -> Tensor:
    """`scale * clip(round(values / scale), levels)`, half to even: QuantizeLinear, then DequantizeLinear.

    The gradient goes straight through to values within the levels, and is 0 beyond them. A scale that requires one gets
    that of LSQ (Esser et al. 2020, arXiv:1902.08153, eq. 3), times 1 / sqrt(values per image x largest level) (sec.
    2.2).

    Args:
        values: (B, ...) float32.
        scale: float32, broadcast to the values; one that is learned has one element.
        levels: to clip to.
    """
    result: Tensor = _FakeQuantize.apply(values, scale, levels)  # type: ignore[no-untyped-call]
    return result


class _FakeQuantize(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, levels: Levels) -> Tensor:
        ratio = values / scale
        level = ratio.round()
        within = (level >= levels.least) & (level <= levels.largest)
        level = level.clamp(levels.least, levels.largest)
        ctx.save_for_backward(within, torch.where(within, level - ratio, level) if scale.requires_grad else None)
        ctx.shape, ctx.weight = scale.shape, 1 / math.sqrt(values[0].numel() * levels.largest)
        return level * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        within, by_scale = ctx.saved_tensors
        if by_scale is None:
            return gradients[0] * within, None, None
        of_scale = (gradients[0] * by_scale).sum() * ctx.weight
        return gradients[0] * within, of_scale.reshape(ctx.shape), None


class ActivationQuantizer(nn.Module):
    """The one scale of an activation tensor: observed, then frozen or learned.

    Args:
        tensor: name in the ONNX graph, for messages.
        bits: 2 to 8.
        known: largest magnitude that follows from something else than images, of values of both signs; None: observe.
    """

    scale: nn.Parameter
    amax: Tensor
    minimum: Tensor
    maximum: Tensor

    def __init__(self, tensor: str, bits: int, known: float | None = None) -> None:
        super().__init__()
        self.tensor, self.bits, self.known = tensor, bits, known is not None
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        start = {"amax": 0.0, "minimum": math.inf, "maximum": -math.inf}
        if known is not None:
            start = {"amax": known, "minimum": -known, "maximum": known}
        for name, value in start.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        # Sums of squares, of the quantization error and of the values; for a report, not for a state.
        self._error = self._power = 0.0
        if self.known:
            self._fix_scale()

    @property
    def levels(self) -> Levels:
        """Those of a value without a sign where none below 0 was seen."""
        return levels_of_bits(self.bits, signed=float(self.minimum) < 0)

    @property
    def used_scale(self) -> Tensor:
        """The scale, at least the least usable one: learning may drive it anywhere."""
        return self.scale.clamp_min(LEAST_SCALES[SINGLE])

    @property
    def relative_error(self) -> float:
        """Mean squared quantization error over mean square, of what `measure` saw; 0 where every value was 0."""
        return self._error / self._power if self._power else 0.0

    def forward(self, values: Tensor) -> Tensor:
        """(B, ...) -> the same, on the levels."""
        return fake_quantize(values, self.used_scale, self.levels)

    @torch.no_grad()
    def observe(self, values: Tensor, decay: float) -> None:
        """Move amax towards the largest magnitude of a batch: `decay amax + (1 - decay) max|x|`; the first one sets it.

        Raises:
            ModelError: a value is NaN or infinite.
        """
        if self.known:
            return
        least, largest = float(values.min()), float(values.max())
        if not (math.isfinite(least) and math.isfinite(largest)):
            raise ModelError(
                f"Tensor '{self.tensor}' holds NaN or infinity: no range covers it; check the float model."
            )
        now, before = max(-least, largest), float(self.amax)
        seen = float(self.maximum) > -math.inf
        self.amax.fill_(decay * before + (1 - decay) * now if seen else now)
        self.minimum.clamp_(max=least)
        self.maximum.clamp_(min=largest)
        self._fix_scale()

    @torch.no_grad()
    def measure(self, values: Tensor) -> None:
        """Add a batch to what `relative_error` is made of."""
        self._error += float((self(values) - values).double().square().sum())
        self._power += float(values.double().square().sum())

    def _fix_scale(self) -> None:
        self.scale.data.fill_(activation_scale(self.tensor, float(self.amax), SINGLE, self.levels))
