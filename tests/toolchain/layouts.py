"""Small checkpoints in the layouts that others write (spec/lctr.md, "Checkpoints people have")."""

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from toolchain.model.presets import Preset

MINI = Preset("lctr-mini", image_size=32, patch_size=16, dim=16, depth=2, heads=2)
"""A preset for tests: 5 tokens of width 16 through 2 blocks."""


def backbone_shapes(dim: int = 16, depth: int = 2, patch: int = 16, tokens: int = 5) -> dict[str, tuple[int, ...]]:
    """Released names of the backbone's parameters, and their shapes."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, tokens, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    layers = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    for block in range(depth):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{norm}.{kind}": (dim,) for kind in ("weight", "bias")}
        for layer, (out, into) in layers.items():
            shapes |= {f"blocks.{block}.{layer}.weight": (out, into), f"blocks.{block}.{layer}.bias": (out,)}
    return shapes


def lctr_shapes(classes: int, dim: int = 16, **sizes: int) -> dict[str, tuple[int, ...]]:
    """Released names of all of LCTR's parameters, and their shapes."""
    return backbone_shapes(dim, **sizes) | {
        "conv3x3.weight": (dim, dim, 3, 3),
        "conv3x3.bias": (dim,),
        "CDM.weight": (4, classes, dim, 3, 3),
        "CDM.bias": (classes,),
        "CDM._routing_fn_two.fc.weight": (4, dim),
        "CDM._routing_fn_two.fc.bias": (4,),
        "CDM._routing_fn_two.fc2.weight": (4, dim),
        "CDM._routing_fn_two.fc2.bias": (4,),
    }


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def released(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """As LCTR's training script saves it, AdamW, timm's cosine schedule, AMP's scaler and command line included."""
    first = next(iter(weights.values()))
    return {
        "model": dict(weights),
        "optimizer": {
            "state": {0: {"step": 936, "exp_avg": torch.zeros_like(first), "exp_avg_sq": torch.zeros_like(first)}},
            "param_groups": [
                {"weight_decay": 0.0, "lr": 5e-5, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "params": [0]}
            ],
        },
        "lr_scheduler": {"param_group_field": "lr", "base_values": [5e-5], "t_initial": 80, "noise_range_t": None},
        "epoch": 79,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "growth_interval": 2000, "_growth_tracker": 936},
        "args": argparse.Namespace(model="deit_small", lr=5e-5, clip_grad=None, opt_betas=[0.9, 0.999], pin_mem=True),
    }


def lctr(classes: int) -> dict[str, Any]:
    return released(drawn(lctr_shapes(classes)))


def deit(classes: int) -> dict[str, Any]:
    """A linear head, everything under `model`."""
    return {"model": drawn(backbone_shapes() | {"head.weight": (classes, 16), "head.bias": (classes,)})}


def ts_cam(classes: int) -> dict[str, Any]:
    """A convolution for a head, saved out of DataParallel."""
    weights = drawn(backbone_shapes() | {"head.weight": (classes, 16, 3, 3), "head.bias": (classes,)})
    return {
        "epoch": 60,
        "state_dict": {f"module.{name}": value for name, value in weights.items()},
        "best_map": 0.8775,
    }
