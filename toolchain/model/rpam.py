"""RPAM, the relational patch-attention module, and the class-token attention (spec/lctr.md). No parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor


def class_token_map(attentions: Sequence[Tensor], grid: int) -> Tensor:
    """`M^c_*`: how much the class token attends to each patch, averaged over layers.

    Args:
        attentions: per layer A_l (B, 1+N, 1+N), rows sum to 1; the first row (B, 1, 1+N) is enough.
        grid: patches along a side, N = grid * grid.

    Returns:
        (B, grid, grid).
    """
    return torch.stack([a[:, 0, 1:] for a in attentions]).mean(0).reshape(-1, grid, grid)


def relational_map(attentions: Sequence[Tensor], grid: int) -> Tensor:
    """`M^r_*`: patches weighted by what the class token's targets attend to in turn, averaged over layers.

    `m_l[j] = mean_i A_l[0, i] A_l[i, j]`, i over all 1+N tokens, j over the patches: one row of `A_l A_l`.

    Args:
        attentions: per layer A_l (B, 1+N, 1+N).
        grid: patches along a side.

    Returns:
        (B, grid, grid); values near 1 / (1+N)^2.
    """
    two_hops = [(a[:, :1] @ a)[:, 0, 1:] / a.shape[-1] for a in attentions]
    return torch.stack(two_hops).mean(0).reshape(-1, grid, grid)
