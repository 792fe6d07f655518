"""The frozen network that says what a generated image has to look like."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Classifier = Callable[[nn.Module, Tensor], Tensor]
"""Model and normalized images (B, 3, H, W) -> logits (B, C)."""
PerChannel = tuple[float, float, float]


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """What a network returns, or the first of it where it returns several things."""
    answer = model(images)
    logits: Tensor = answer[0] if isinstance(answer, (tuple, list)) else answer
    return logits


@dataclass(frozen=True)
class Teacher:
    """A classifier, and what its images look like.

    Attributes:
        model: the network; whoever works with it leaves its parameters and mode as they were.
        num_classes: C.
        image_size: side S of the square input, pixels.
        mean: per RGB channel, of pixels in [0, 1]: the network's normalization.
        std: likewise.
        classifier: how the network is asked for its logits.
    """

    model: nn.Module
    num_classes: int
    image_size: int
    mean: PerChannel
    std: PerChannel
    classifier: Classifier = logits_of

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    def logits(self, images: Tensor) -> Tensor:
        """Normalized images (B, 3, S, S) on any device -> logits (B, C)."""
        return self.classifier(self.model, images.to(self.device))

    def normalized(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Images (B, S, S, 3) uint8 RGB -> what the network sees of them, (B, 3, S, S)."""
        mean, std = self._columns()
        return (torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2) / 255 - mean) / std

    def pixels(self, images: Tensor) -> NDArray[np.uint8]:
        """The inverse of `normalized`, rounded; what lies beyond black or white becomes it."""
        mean, std = self._columns()
        levels = ((images * std + mean) * 255).round().clamp(0, 255).byte()
        return levels.permute(0, 2, 3, 1).cpu().numpy()

    def valid_range(self) -> tuple[Tensor, Tensor]:
        """Black and white, normalized: (3, 1, 1) each."""
        mean, std = self._columns()
        return -mean / std, (1 - mean) / std

    def _columns(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (self.mean, self.std))
        return mean, std
