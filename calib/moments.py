"""Mean and variance per channel: what FDDA's losses compare, whatever the network they were taken from."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SCALE_FLOOR = 1e-3
"""A channel's variance counts as at least this share of its layer's mean variance: a dead channel is no target."""


class Moments(NamedTuple):
    """First two moments per channel.

    Attributes:
        mean: (..., D).
        variance: (..., D), biased (divided by the number of positions).
    """

    mean: Tensor
    variance: Tensor

    def row(self, index: "int | list[int]") -> "Moments":
        """One row, or several, of (K, D)."""
        return Moments(self.mean[index], self.variance[index])

    def to(self, device: torch.device) -> "Moments":
        """The same in float32 on a device."""
        return Moments(self.mean.to(device, torch.float32), self.variance.to(device, torch.float32))


def image_moments(positions: Tensor) -> Moments:
    """Per image, over its positions: (B, N, D) -> mean and variance (B, D)."""
    variance, mean = torch.var_mean(positions, dim=1, correction=0)
    return Moments(mean, variance)


def batch_moments(positions: Tensor) -> Moments:
    """Over all positions of all images: (B, N, D) -> mean and variance (D,)."""
    variance, mean = torch.var_mean(positions, dim=(0, 1), correction=0)
    return Moments(mean, variance)


def pooled(parts: Sequence[Moments]) -> Moments:
    """Moments over all images, (D,), from the moments of each, (B, D) per part."""
    # The variance of a whole is the mean of its parts' variances plus the variance of its parts' means.
    mean, variance = (torch.cat(values) for values in zip(*parts, strict=True))
    return Moments(mean.mean(0), variance.mean(0) + mean.var(0, correction=0))


def relative_to(reference: Moments, moments: Moments) -> Moments:
    """Moments in units of the reference's standard deviation, per channel.

    Args:
        reference: global mean and variance of the layer, (D,).
        moments: (..., D).

    Returns:
        `(mean - mean_ref) / std_ref` and `variance / std_ref^2`: the reference itself becomes 0 and 1.
    """
    unit = scale_of(reference)
    return Moments((moments.mean - reference.mean) / unit, moments.variance / unit**2)


def scale_of(reference: Moments) -> Tensor:
    """The unit of `relative_to`: standard deviation per channel (D,), floored for dead channels."""
    floor = SCALE_FLOOR * reference.variance.mean() + torch.finfo(reference.variance.dtype).tiny
    return reference.variance.clamp_min(floor).sqrt()
