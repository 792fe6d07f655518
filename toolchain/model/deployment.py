"""LCTR as it is deployed: the localizer's outputs, exactly, without what only training and research need.

Three rewrites of the same numbers (spec: "What deployment needs"):

1. Logits without class maps, `PooledHead.logits`. Pooling and convolution are linear: the kernels meet one pooled
   vector of 9 D numbers instead of D x h x w features.
2. The predicted class's map alone, `PooledHead.map`. Its kernels are gathered, and one map is convolved instead of C.
3. RPAM off the critical path, `Rpam`. A second reader of the softmax makes a compiler give up its fused attention
   kernel; so the relations are computed anew, from the queries and keys of all blocks at once, after the trunk.
"""

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.model.backbone import Block, with_class_token
from toolchain.model.cdm import TAPS, CueDiggingModule, pooled_logits, pooling_weights, shifted_weights
from toolchain.model.lctr import ClassMaps, Lctr, Localized


class DeployedLctr(nn.Module):
    """The localizer as an export form: images (B, 3, S, S) float32, normalized -> `Localized` or `ClassMaps`, float32.

    Submodules keep the names that they have in `Lctr`, and so do the nodes of an exported graph.

    Args:
        model: the localizer; its weights are shared unless the precision differs.
        all_maps: return the maps of all classes, without rewrites 1 and 2.
        precision: of weights and activations, float32 or float16. The class token's attention, RPAM's softmax and sums
            and the product of both maps are computed in float32 whatever the precision.
    """

    head: "PooledHead | None"

    def __init__(self, model: Lctr, *, all_maps: bool = False, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        model = model if precision == torch.float32 else copy.deepcopy(model).to(precision)
        self.preset, self.precision = model.preset, precision
        self.patch_embed, self.norm = model.patch_embed, model.norm
        self.cls_token, self.pos_embed = model.cls_token, model.pos_embed
        self.blocks = nn.ModuleList(DeployedBlock(cast(Block, block)) for block in model.blocks)
        self.rpam = Rpam(model.preset.depth, model.preset.grid)
        self.conv3x3, self.CDM = model.conv3x3, model.CDM
        self.head = None if all_maps else PooledHead(model.CDM, model.preset.grid)

    def forward(self, images: Tensor) -> Localized | ClassMaps:
        """Classify and localize."""
        patches, queries, keys = self._trunk(images.to(self.precision))
        class_attention, relation = self.rpam(queries, keys)
        features = patches.transpose(1, 2).reshape(-1, self.preset.dim, self.preset.grid, self.preset.grid)
        cues = self.conv3x3(features * (1 - class_attention)[:, None].to(self.precision))
        if self.head is None:
            class_maps, _ = self.CDM(features, cues)
            return ClassMaps(pooled_logits(class_maps).float(), class_maps.float(), relation)
        logits, class_map = self.head(patches, self.CDM._routing_fn_two(cues))
        return Localized(logits.float(), relation * torch.relu(class_map.float()))

    def _trunk(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Final-normed patch tokens (B, N, D), and the queries and keys of all blocks, (B, L H, T, d) each."""
        tokens = with_class_token(self.patch_embed(images), self.cls_token, self.pos_embed)
        queries, keys = [], []
        for block in self.blocks:
            tokens, query, key = block(tokens)
            queries.append(query)
            keys.append(key)
        return self.norm(tokens)[:, 1:], torch.cat(queries, 1), torch.cat(keys, 1)


class AllMaps(nn.Module):
    """The plain model with the outputs of `--maps all`: what the deployed form of it is compared with."""

    def __init__(self, model: Lctr) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> ClassMaps:
        """Classify, with the map of every class."""
        return self.model.all_maps(images)


class DeployedBlock(nn.Module):
    """A transformer block whose attention probabilities nobody else reads.

    Args:
        block: the block whose parts are taken over, under their names.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> (B, T, D), and the block's scaled queries and keys, (B, H, T, d) each."""
        query, key, value = self.attn.split(self.norm1(tokens))
        mixed = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        tokens = tokens + self.attn.proj(mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens)), query, key


class Rpam(nn.Module):
    """`M^c_*` and `M^r_*` from the queries and keys of all blocks (rewrite 3).

    The mean that defines `M^r_*` is near 1 / T^2, which FP16 cannot hold. So hops are summed, and only the float32 sum
    is divided; a hop of one head is near 1 / T.

    Args:
        layers: L.
        grid: patches along a side.
    """

    def __init__(self, layers: int, grid: int) -> None:
        super().__init__()
        self.layers, self.grid = layers, grid

    def forward(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled queries and keys (B, L H, T, d), heads of a block side by side -> two maps (B, h, w) float32."""
        batch, stacked, count, _ = queries.shape
        # The class token's rows on their own: the logits wait for them, and not for the relations.
        rows = (queries[:, :, :1] @ keys.transpose(-2, -1)).float().softmax(-1)
        rows = rows.reshape(batch, self.layers, -1, count).mean(2, keepdim=True)
        first_hop = rows.expand(-1, -1, stacked // self.layers, -1).reshape(batch, stacked, 1, count)
        # In float32: TensorRT-RTX 1.7.1 compiles a softmax outside its fused kernel with sums of the input's type.
        attention = (queries @ keys.transpose(-2, -1)).float().softmax(-1).to(queries.dtype)
        two_hops = (first_hop.to(attention.dtype) @ attention).float().sum(1)[:, 0, 1:]
        relation = two_hops / (stacked * count)
        return self._as_map(rows[:, :, 0, 1:].mean(1)), self._as_map(relation)

    def _as_map(self, patches: Tensor) -> Tensor:
        return patches.reshape(-1, self.grid, self.grid)


class PooledHead(nn.Module):
    """CDM's classifier with the nine taps of each kernel in one row: (G C, 9 D), experts outermost.

    Args:
        cdm: the module whose kernels are taken over.
        grid: patches along a side.
    """

    border: Tensor

    def __init__(self, cdm: CueDiggingModule, grid: int) -> None:
        super().__init__()
        self.experts, self.classes, dim = cdm.weight.shape[:3]
        self.grid = grid
        rows = cdm.weight.detach().permute(0, 1, 3, 4, 2).reshape(self.experts * self.classes, TAPS * dim)
        self.kernels = nn.Linear(TAPS * dim, len(rows), bias=False)
        self.kernels.weight = nn.Parameter(rows.contiguous())
        self.bias = nn.Parameter(cdm.bias.detach())
        weights = pooling_weights(grid, grid)
        self.register_buffer("border", shifted_weights(weights).to(rows))
        self.bias_share = float(weights.sum())
        self.requires_grad_(False)

    def forward(self, patches: Tensor, routing: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens (B, N, D) and routing (B, G) -> logits (B, C), and the predicted class's map (B, h, w)."""
        logits = self.logits(patches, routing)
        return logits, self.map(patches, routing, logits.argmax(1))

    def logits(self, patches: Tensor, routing: Tensor) -> Tensor:
        """Patch tokens (B, N, D) and routing (B, G) -> logits (B, C)."""
        pooled = (self.border @ patches).flatten(1)
        per_expert: Tensor = self.kernels(pooled).reshape(-1, self.experts, self.classes)
        return (routing[:, :, None] * per_expert).sum(1) + self.bias_share * self.bias

    def map(self, patches: Tensor, routing: Tensor, labels: Tensor) -> Tensor:
        """`X_CDM` of one class per image: tokens (B, N, D), routing (B, G), labels (B,) -> (B, h, w)."""
        rows = labels[:, None] + self.classes * torch.arange(self.experts, device=labels.device)
        kernel = routing[:, None] @ F.embedding(rows, self.kernels.weight)
        taps = kernel.reshape(-1, TAPS, patches.shape[2]) @ patches.transpose(1, 2)
        maps = _shifted_sum(taps.reshape(-1, TAPS, self.grid, self.grid))
        return maps + self.bias.index_select(0, labels)[:, None, None]


def _shifted_sum(taps: Tensor) -> Tensor:
    """The products of a 3 x 3 convolution's taps with what they read (B, 9, h, w) -> the convolution (B, h, w)."""
    padded = F.pad(taps, (1, 1, 1, 1))
    high, wide = taps.shape[2:]
    moved = [padded[:, 3 * u + v, u : u + high, v : v + wide] for u in range(3) for v in range(3)]
    # One addition after the other: a compiler makes one kernel of them.
    return sum(moved[1:], start=moved[0])
