"""The forward as it was published, written from its formulas: what ours is timed against.

What was published and is kept: every block's attention map stays in memory; RPAM multiplies whole maps; CDM convolves
image by image in a Python loop; every image gets the map of every image's predicted class, B x B maps, of which the
diagonal is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.model.lctr import Lctr


class ReleasedForward(nn.Module):
    """Images (B, 3, S, S) -> logits (B, C), fused map (B, h, w), class maps (B, C, h, w).

    Args:
        model: whose weights are used.
    """

    def __init__(self, model: Lctr) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Classify and localize as the release does."""
        features, attentions = self._backbone(images)
        relation = self._relation(attentions)
        logits, class_maps = self.classify(features, attentions)
        every = torch.relu(class_maps[:, logits.argmax(1)])
        fused = relation[:, None] * every
        return logits, fused.diagonal(dim1=0, dim2=1).permute(2, 0, 1), class_maps

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, C), for a training step; the attention maps are made and kept, as in the release."""
        return self.classify(*self._backbone(images))[0]

    def classify(self, features: Tensor, attentions: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and class maps (B, C, h, w), image by image."""
        cdm, grid = self.model.CDM, self.model.preset.grid
        cue = torch.stack([a[:, 0, 1:] for a in attentions]).mean(0).reshape(-1, 1, grid, grid)
        routing = cdm._routing_fn_two(self.model.conv3x3(features * (1 - cue)))
        maps = []
        for image, weights in zip(features, routing, strict=True):
            kernel = (weights[:, None, None, None, None] * cdm.weight).sum(0)
            maps.append(F.conv2d(image[None], kernel, cdm.bias, padding=1))
        class_maps = torch.cat(maps)
        return F.avg_pool2d(class_maps, 3, stride=1, padding=1).mean((2, 3)), class_maps

    def _backbone(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        tokens, attentions = self.model.tokens(images)
        grid = self.model.preset.grid
        return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, grid, grid), attentions

    def _relation(self, attentions: list[Tensor]) -> Tensor:
        maps = torch.stack(attentions)
        relation = (maps[:, :, 0, :, None] * maps).mean(2).mean(0)[:, 1:]
        return relation.reshape(-1, self.model.preset.grid, self.model.preset.grid)
