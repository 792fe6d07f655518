"""FDDA's losses (arXiv:2109.04186; spec/fdda.md): pure functions of (mean, variance) pairs, one for each layer.

The published method compares the moments of BatchNorm inputs as they are. A transformer's residual stream cannot be
compared so: its channels differ in scale by orders of magnitude, and a plain squared error is a loss on the two or
three loudest of them. `calib.moments.relative_to` expresses such moments in units of the channel's own deviation first.
A BatchNorm network gains by that, too: in a ResNet-20 the variances of the deep layers' median channels are 0.3 to 37.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from calib.moments import Moments


def bns_loss(observed: Sequence[Moments], targets: Sequence[Moments]) -> Tensor:
    """`L_BNS = 1/L sum_l MSE(m_l, mean_l) + MSE(s_l, variance_l)` over all layers.

    Args:
        observed: moments of the generated batch, (D_l,) per layer; or of each image of it, (B, D_l).
        targets: global moments, (D_l,) per layer.

    Returns:
        one number, or one for each image, (B,).

    Raises:
        ValueError: the sequences differ in length, or are empty.
    """
    if not targets:
        raise ValueError("no layer to compare: the sequences are empty")
    per_layer = [
        (o.mean - t.mean).square().mean(-1) + (o.variance - t.variance).square().mean(-1)
        for o, t in zip(observed, targets, strict=True)
    ]
    return torch.stack(per_layer).mean(0)


def centralized_loss(observed: Sequence[Moments], centers: Sequence[Moments]) -> Tensor:
    """`L_C`: the formula of `bns_loss`, between a single-class batch and its class center, over the center layers."""
    return bns_loss(observed, centers)


def distorted_loss(
    observed: Sequence[Moments], centers: Sequence[Moments], spreads: Sequence[Moments], generator: torch.Generator
) -> Tensor:
    """`L_D`: `L_C` with every target redrawn per channel and call, `N(center, spread^2)`.

    Images of a class do not coincide with its center; the noise keeps generated ones from doing so.

    Args:
        observed: moments of a single-class batch, (D_l,) per center layer.
        centers: moments of that class, likewise.
        spreads: standard deviation of the noise on mean and variance, likewise, or one number for all channels (1,).
        generator: source of the noise.
    """
    targets = [distorted(center, spread, generator) for center, spread in zip(centers, spreads, strict=True)]
    return bns_loss(observed, targets)


def distorted(center: Moments, spread: Moments, generator: torch.Generator) -> Moments:
    """One draw of `N(center, spread^2)`; a variance below 0, which no image can have, becomes 0."""

    def draw(middle: Tensor, deviation: Tensor) -> Tensor:
        noise = torch.randn(middle.shape, generator=generator, dtype=middle.dtype).to(middle.device)
        return middle + deviation * noise

    return Moments(draw(center.mean, spread.mean), draw(center.variance, spread.variance).clamp_min(0))


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, vertical plus horizontal: (B, 3, H, W) -> ()."""
    vertical = (images[:, :, 1:] - images[:, :, :-1]).abs().mean()
    horizontal = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().mean()
    return vertical + horizontal
