"""From largest magnitudes to scales: arithmetic (rules 1, 5, 7, 8 and 11 of `exporters.qdq`)."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolchain.errors import ModelError

LEAST_SCALES = {np.dtype(np.float32): 2.0**-60, np.dtype(np.float16): 2.0**-20}
"""Usable scales: far from what flushes to 0. FP32: the product of two is still a normal number. FP16: subnormal, which
GPUs keep, with four bits left; the least normal one (amax 0.008) would be too coarse for weights."""
BIAS_UNITS = 2.0**30
"""Of activation scale x weight scale that a bias may measure: half of what int32 holds."""


@dataclass(frozen=True)
class Levels:
    """The integers that a quantizer gives.

    Attributes:
        least: 0 for values that are never negative.
        largest: what amax becomes.
    """

    least: int
    largest: int


INT8 = Levels(-128, 127)


def levels_of_bits(bits: int, *, signed: bool) -> Levels:
    """The levels of a quantizer of at most 8 bits: `levels_of_bits(4, signed=True)` is -8 to 7.

    Without a sign all of them lie above 0, 0 to 15. At 8 bits there is a sign whatever the values are, for they have to
    fit int8.
    """
    if signed or bits == 8:
        return Levels(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return Levels(0, 2**bits - 1)


@dataclass(frozen=True)
class ChannelScales:
    """Of one weight.

    Attributes:
        scales: (C,) in the weight's type, one per output channel.
        zero: how many channels are all 0.
        widened: in how many channels the bias, not the weight, set the scale.
    """

    scales: NDArray[np.generic]
    zero: int
    widened: int


def activation_scale(tensor: str, amax: float, dtype: np.dtype[np.generic], levels: Levels = INT8) -> float:
    """The scale amax / largest level as the tensor's type holds it, at least the least usable scale (rule 7).

    Raises:
        ModelError: amax is negative or not finite, or the type is neither float32 nor float16.
    """
    if dtype not in LEAST_SCALES:
        raise ModelError(f"Tensor '{tensor}' meets a weight of type {dtype}: export the model in float32 or float16.")
    if not (math.isfinite(amax) and amax >= 0):
        raise ModelError(f"Tensor '{tensor}' has the range {amax}: it must be finite and >= 0; compute it again.")
    return max(float(np.array(amax / levels.largest).astype(dtype)), LEAST_SCALES[dtype])


def channel_amax(weight: NDArray[np.generic], axis: int) -> NDArray[np.generic]:
    """Largest magnitude in each of the C output channels along `axis`: (C,)."""
    return np.asarray(np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).max(1))


def channel_scales(
    name: str, amax: NDArray[np.generic], least: NDArray[np.float64], levels: Levels = INT8
) -> ChannelScales:
    """The scales of a weight's output channels (rule 8).

    Args:
        name: of the weight, for the error.
        amax: (C,) by output channel, in the weight's type: float32 or float16.
        least: (C,), or (1,) for all: the bound that the biases set.
        levels: of the weight.

    Raises:
        ModelError: the weight holds NaN or infinity.
    """
    channels = amax.astype(np.float64)
    if not np.isfinite(channels).all():
        raise ModelError(f"Weight '{name}' holds NaN or infinity: train or import the model again.")
    zero = channels == 0
    # A weight of zeros alone has no largest channel, and 1 is as exact as any.
    channels[zero] = channels.max() or 1.0
    scales = np.maximum(channels / levels.largest, LEAST_SCALES[amax.dtype])
    widened = int((scales < least).sum())
    return ChannelScales(np.maximum(scales, least).astype(amax.dtype), int(zero.sum()), widened)


def bias_bound(bias: NDArray[np.generic], activation_scale: float) -> NDArray[np.float64]:
    """The least weight scale per channel with which the bias fits int32 (rule 8).

    Args:
        bias: (C,), or what broadcasts to (M, C) as a Gemm's may: the channels are its last axis.
        activation_scale: of the tensor that the weight is multiplied with.

    Returns:
        (C,), or (1,) for all.
    """
    magnitudes = np.atleast_1d(np.abs(bias.astype(np.float64)))
    return np.asarray(magnitudes.reshape(-1, magnitudes.shape[-1]).max(0) / (activation_scale * BIAS_UNITS))
