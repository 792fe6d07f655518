"""The vision transformer under LCTR: DeiT's architecture and parameter names (spec/lctr.md, "Backbone")."""

from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.model.presets import Preset

LAYER_NORM_EPS = 1e-6
FUSED_HEAD_DIM = 64
"""Least width of a head that fused attention is used for on a CPU, where it saves memory and costs time.

A training step of lctr-small (width 64, 32 images, two cores) needs 0.87 of the memory with it in float32 and 0.90 in
bfloat16, at 1.02 and 1.26 of the time; one of lctr-nano (width 32) takes 1.6 times as long.
"""


class PatchEmbedding(nn.Module):
    """Non-overlapping patches to tokens: (B, 3, S, S) -> (B, N, D)."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Project every patch."""
        patches: Tensor = self.proj(images)
        return patches.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention that also returns its probabilities, averaged over heads.

    Where only the class token's row of them is asked for, a training step keeps no T x T map for the backward pass: the
    fused kernel mixes the values, and the row is computed on its own. That is so on every GPU, and on a CPU for heads
    of `FUSED_HEAD_DIM` and wider.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, class_row_only: bool) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> (B, T, D) and A (B, T, T), or its first row (B, 1, T)."""
        query, key, value = self.split(tokens)
        if class_row_only and self.training and _fuses(query):
            mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
            attention = (query[:, :, :1] @ key.transpose(-2, -1)).softmax(-1)
        else:
            attention = (query @ key.transpose(-2, -1)).softmax(-1)
            mixed = attention @ value
        row = attention[:, :, :1] if class_row_only else attention
        return self.proj(mixed.transpose(1, 2).flatten(2)), row.mean(1)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> scaled queries, keys and values, (B, H, T, d) each."""
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        # On q, before the product: there TensorRT still recognizes attention and FP16 does not overflow.
        return query * self.scale, key, value


def _fuses(query: Tensor) -> bool:
    """Whether fused attention is used for queries (B, heads, T, width)."""
    return query.device.type != "cpu" or query.shape[-1] >= FUSED_HEAD_DIM


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.fc2(self.act(self.fc1(tokens)))
        return out


class DropPath(nn.Module):
    """Stochastic depth: a whole residual branch is left out per image, and scaled up where it stays."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, T, D) -> the same, some images' rows zero while training."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.rate
        return branch * kept / (1 - self.rate)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.mlp = Mlp(dim, dim * mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, class_row_only: bool) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> (B, T, D) and this block's A (B, T, T), or its first row (B, 1, T)."""
        mixed, attention = self.attn(self.norm1(tokens), class_row_only)
        tokens = tokens + self.drop_path(mixed)
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens, attention


class VisionTransformer(nn.Module):
    """Class token + patch tokens through L blocks and a final LayerNorm.

    Args:
        preset: sizes.
        drop_path: stochastic depth rate of the last block; rises linearly from 0 at the first.
    """

    def __init__(self, preset: Preset, drop_path: float = 0.0) -> None:
        super().__init__()
        self.preset = preset
        self.patch_embed = PatchEmbedding(preset.patch_size, preset.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, preset.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + preset.grid**2, preset.dim))
        rates = torch.linspace(0, drop_path, preset.depth).tolist()
        self.blocks = nn.ModuleList(Block(preset.dim, preset.heads, preset.mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(preset.dim, LAYER_NORM_EPS)
        self.apply(_start)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def tokens(self, images: Tensor, *, class_row_only: bool = False) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, S, S) -> final-normed tokens (B, 1+N, D), class token first, and attention of each block.

        Attention is A_l (B, 1+N, 1+N), or only the class token's row of it (B, 1, 1+N).
        """
        tokens, attentions = self.advance(self.embed(images), class_row_only=class_row_only)
        return self.norm(tokens), attentions

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> tokens before the first block (B, 1+N, D), class token first."""
        return with_class_token(self.patch_embed(images), self.cls_token, self.pos_embed)

    def advance(
        self, tokens: Tensor, first: int = 0, end: int | None = None, *, class_row_only: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens before block `first` -> tokens after block `end - 1`, of the last one by default.

        Returns:
            tokens (B, 1+N, D), and attention of each block passed, as `tokens` gives it.
        """
        attentions = []
        for block in islice(self.blocks, first, end):
            tokens, attention = block(tokens, class_row_only)
            attentions.append(attention)
        return tokens, attentions


def with_class_token(patches: Tensor, cls_token: Tensor, pos_embed: Tensor) -> Tensor:
    """(B, N, D), (1, 1, D), (1, 1+N, D) -> (B, 1+N, D)."""
    return torch.cat([cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + pos_embed


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
