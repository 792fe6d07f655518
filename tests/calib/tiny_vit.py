"""A transformer small enough to train on in a test, its LayerNorms named as in timm."""

import torch
from torch import Tensor, nn

from calib.teacher import Teacher
from calib.tokens import attention_view, token_view

LAYERS = ("blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm")
CLASSES = 3
SIZE = 16
MEAN = (0.4, 0.5, 0.6)
STD = (0.25, 0.2, 0.3)
VIEW = token_view(LAYERS)
ATTENTION = attention_view(("blocks.0.mix", "blocks.1.mix"), heads=2)


class TinyBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mix = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        attention = (normed @ normed.transpose(1, 2) / 4).softmax(-1)
        tokens = tokens + self.mix(attention @ normed)
        return tokens + self.mlp(self.norm2(tokens))


class TinyViT(nn.Module):
    """16 px, patch 4: 1 + 16 tokens of 8 channels; logits (B, 3)."""

    def __init__(self, dim: int = 8, classes: int = CLASSES) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(TinyBlock(dim) for _ in range(2))
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.dropout(self.norm(tokens)[:, 1:].mean(1)))


def tiny_vit(seed: int = 0) -> TinyViT:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyViT()


def teacher(model: nn.Module | None = None, classes: int = CLASSES, **changes) -> Teacher:
    return Teacher(model or tiny_vit(), classes, SIZE, MEAN, STD, **changes)


def labelled_images(per_class: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images in which each class has its own colour, plus noise: normalized (B, 3, 16, 16), and labels (B,)."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat(per_class)
    images = torch.eye(3)[labels][:, :, None, None] + torch.randn(len(labels), 3, SIZE, SIZE, generator=random)
    return images, labels
