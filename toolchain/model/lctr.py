"""LCTR, the Local Continuity TRansformer: backbone, RPAM and CDM put together (arXiv:2112.05291; spec/lctr.md)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from toolchain.model.backbone import VisionTransformer
from toolchain.model.cdm import CueDiggingModule, pooled_logits
from toolchain.model.presets import Preset
from toolchain.model.rpam import class_token_map, relational_map


class Cues(NamedTuple):
    """What the classifier sees of the backbone.

    Attributes:
        features: `X_L` (B, D, h, w), final-normed patch tokens.
        class_attention: `M^c_*` (B, h, w).
    """

    features: Tensor
    class_attention: Tensor


class Halfway(NamedTuple):
    """What the blocks that were passed leave to the others.

    Attributes:
        tokens: (B, 1+N, D), class token first.
        class_attention: the class token's attention (B, h, w), summed over the blocks passed.
    """

    tokens: Tensor
    class_attention: Tensor


class Classified(NamedTuple):
    """What the classifier makes of the cues.

    Attributes:
        logits: (B, C).
        routing: (B, G), each in (0, 1).
    """

    logits: Tensor
    routing: Tensor


class Localized(NamedTuple):
    """What the localizer returns, and the contract of the exported graph.

    Attributes:
        logits: (B, C).
        map: `M_fuse` (B, h, w) of the predicted class, >= 0.
    """

    logits: Tensor
    map: Tensor


class ClassMaps(NamedTuple):
    """What research asks for; the fused map of a class is `attention x ReLU(its map)`.

    Attributes:
        logits: (B, C).
        maps: `X_CDM` (B, C, h, w), of every class.
        attention: `M^r_*` (B, h, w).
    """

    logits: Tensor
    maps: Tensor
    attention: Tensor


class Lctr(VisionTransformer):
    """The localizer: images (B, 3, S, S), normalized -> `Localized`.

    Parameter names are those of the authors' release, so that its checkpoints load unchanged.

    Args:
        preset: sizes.
        num_classes: C.
        drop_path: stochastic depth rate of the last block.
    """

    def __init__(self, preset: Preset, num_classes: int, drop_path: float = 0.0) -> None:
        super().__init__(preset, drop_path)
        self.num_classes = num_classes
        self.conv3x3 = nn.Conv2d(preset.dim, preset.dim, 3, padding=1)
        self.CDM = CueDiggingModule(preset.dim, num_classes, preset.experts)

    def forward(self, images: Tensor) -> Localized:
        """Classify and localize."""
        logits, maps, attention = self.all_maps(images)
        return Localized(logits, fused_map(attention, logits, maps))

    def all_maps(self, images: Tensor) -> ClassMaps:
        """Classify, with the map of every class."""
        tokens, attentions = self.tokens(images)
        cues = self._cues(tokens, attentions)
        class_maps, _ = self.CDM(cues.features, self._dug(cues))
        return ClassMaps(pooled_logits(class_maps), class_maps, relational_map(attentions, self.preset.grid))

    def cues(self, images: Tensor) -> Cues:
        """Backbone only: what `classify` needs. RPAM is left out: it has no part in the loss."""
        return self._cues(*self.tokens(images, class_row_only=True))

    def halfway(self, images: Tensor, blocks: int) -> Halfway:
        """The first `blocks` blocks only, at least one and not all of them."""
        tokens, attentions = self.advance(self.embed(images), end=blocks, class_row_only=True)
        return Halfway(tokens, class_token_map(attentions, self.preset.grid) * blocks)

    def cues_from(self, halfway: Halfway, blocks: int) -> Cues:
        """What `cues` gives, from where `halfway` stopped: `cues_from(halfway(x, k), k)` is `cues(x)`."""
        tokens, attentions = self.advance(halfway.tokens, blocks, class_row_only=True)
        rest = self._cues(self.norm(tokens), attentions)
        total = halfway.class_attention + rest.class_attention * len(attentions)
        return Cues(rest.features, total / self.preset.depth)

    def classify(self, cues: Cues) -> Classified:
        """CDM without class maps, which have no part in the loss: the logits of `all_maps`, and routing."""
        return Classified(*self.CDM.logits(cues.features, self._dug(cues)))

    def _dug(self, cues: Cues) -> Tensor:
        """`X~` (B, D, h, w): features from where the class token looks least."""
        dug: Tensor = self.conv3x3(cues.features * (1 - cues.class_attention)[:, None])
        return dug

    def _cues(self, tokens: Tensor, attentions: list[Tensor]) -> Cues:
        grid = self.preset.grid
        features = tokens[:, 1:].transpose(1, 2).reshape(-1, self.preset.dim, grid, grid)
        return Cues(features, class_token_map(attentions, grid))


def fused_map(relation: Tensor, logits: Tensor, class_maps: Tensor) -> Tensor:
    """`M_fuse = M^r_* x ReLU(X_CDM)` of each image's predicted class: (B, h, w)."""
    predicted = logits.argmax(1)[:, None, None, None].expand(-1, 1, *class_maps.shape[2:])
    return relation * torch.relu(class_maps.gather(1, predicted)[:, 0])
