"""FDDA's losses on token statistics (arXiv:2109.04186; spec/fdda.md): pure functions of (mean, variance) pairs.

Residual-stream channels differ in scale by orders of magnitude, between layers and within one: a plain squared error
is a loss on the two or three loudest channels of the last block. `relative_to` therefore expresses every moment in
units of the channel's own global standard deviation over the real data, which is the coordinate change a BatchNorm
network gets for free from its preceding layers. All losses below are meant for such relative moments.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from calib.statistics import Statistics
from calib.tokens import Moments, batch_moments, relative_to, scale_of


def bns_loss(observed: Sequence[Moments], targets: Sequence[Moments]) -> Tensor:
    """`L_BNS = 1/L sum_l MSE(m_l, mean_l) + MSE(s_l, variance_l)` over all layers.

    Args:
        observed: moments of the generated batch, (D_l,) per layer.
        targets: global moments, likewise.

    Raises:
        ValueError: the sequences differ in length, or are empty.
    """
    if not targets:
        raise ValueError("no layer to compare: the sequences are empty")
    per_layer = [
        F.mse_loss(o.mean, t.mean) + F.mse_loss(o.variance, t.variance) for o, t in zip(observed, targets, strict=True)
    ]
    return torch.stack(per_layer).mean()


def centralized_loss(observed: Sequence[Moments], centers: Sequence[Moments]) -> Tensor:
    """`L_C`: the formula of `bns_loss`, between a single-class batch and its class center, over the center layers."""
    return bns_loss(observed, centers)


def distorted_loss(
    observed: Sequence[Moments], centers: Sequence[Moments], spreads: Sequence[Moments], generator: torch.Generator
) -> Tensor:
    """`L_D`: `L_C` with every target redrawn per channel and call, `N(center, spread^2)`.

    Images of a class do not coincide with its center; the noise keeps generated ones from doing so. The published
    scale is 0.5 and 1.0 for every channel; here it is the measured spread within the class.

    Args:
        observed: moments of a single-class batch, (D_l,) per center layer.
        centers: moments of that class, likewise.
        spreads: standard deviation over the class's images of their mean and of their variance, likewise.
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


class Targets:
    """The statistics as the losses want them: relative to the global deviation, per layer, on the model's device.

    Args:
        statistics: of the model.
        device: where the model is.
    """

    def __init__(self, statistics: Statistics, device: torch.device) -> None:
        self._layers = tuple(statistics.overall)
        self._overall = [Moments(*(t.to(device) for t in statistics.overall[layer])) for layer in self._layers]
        self._row = {c: row for row, c in enumerate(statistics.population.classes)}
        self._centered = [self._layers.index(layer) for layer in statistics.centers]
        self._centers, self._spreads = [], []
        for index, centers in zip(self._centered, statistics.centers.values(), strict=True):
            overall, unit = self._overall[index], scale_of(self._overall[index])
            self._centers.append(relative_to(overall, Moments(*(t.to(device) for t in centers.center))))
            mean, variance = (t.to(device) for t in centers.spread)
            self._spreads.append(Moments(mean / unit, variance / unit**2))

    def losses(
        self, random_class: Sequence[Tensor], single_class: Sequence[Tensor], label: int, noise: torch.Generator
    ) -> dict[str, Tensor]:
        """L_BNS of the one batch; L_D and L_C of the other if its class has a center.

        Args:
            random_class: per layer, patch tokens (B, N, D) of the batch of random labels.
            single_class: likewise, of the batch of one class.
            label: of that class.
            noise: source of L_D's noise.
        """
        units = [relative_to(overall, overall) for overall in self._overall]
        losses = {"bns": bns_loss([self._observed(i, t) for i, t in enumerate(random_class)], units)}
        if self._centered and label in self._row:
            row = self._row[label]
            observed = [self._observed(index, single_class[index]) for index in self._centered]
            centers = [Moments(m.mean[row], m.variance[row]) for m in self._centers]
            spreads = [Moments(m.mean[row], m.variance[row]) for m in self._spreads]
            losses["distorted"] = distorted_loss(observed, centers, spreads, noise)
            losses["centralized"] = centralized_loss(observed, centers)
        return losses

    def deviation_ratio(self, moments: Sequence[Moments]) -> dict[str, float]:
        """Per layer, the standard deviation given over the real one: the median over channels."""
        relative = [relative_to(overall, m) for overall, m in zip(self._overall, moments, strict=True)]
        return {layer: float(r.variance.sqrt().median()) for layer, r in zip(self._layers, relative, strict=True)}

    def _observed(self, layer: int, tokens: Tensor) -> Moments:
        return relative_to(self._overall[layer], batch_moments(tokens))
