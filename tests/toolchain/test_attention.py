"""A training step's attention is the one that is deployed, and keeps no map where the fused kernel is used."""

import pytest
import torch
from torch import Tensor, nn

from toolchain.model.backbone import Attention
from toolchain.model.lctr import Lctr
from toolchain.model.presets import Preset

pytestmark = pytest.mark.usefixtures("one_thread")

WIDE = Preset("wide", image_size=32, patch_size=8, dim=128, depth=2, heads=2)
NARROW = Preset("narrow", image_size=32, patch_size=8, dim=64, depth=2, heads=2)
TOKENS = 17


def attention(preset: Preset) -> Attention:
    torch.manual_seed(0)
    module = Attention(preset.dim, preset.heads)
    nn.init.normal_(module.qkv.weight, std=0.2)
    return module


def outputs_and_gradients(module: Attention, tokens: Tensor, training: bool) -> list[Tensor]:
    module.train(training).zero_grad()
    tokens = tokens.clone().requires_grad_()
    mixed, row = module(tokens, True)
    # Both outputs count in the loss, each with weights of its own.
    weights = torch.Generator().manual_seed(1)
    sum((part * torch.randn(part.shape, generator=weights)).sum() for part in (mixed, row)).backward()
    return [mixed.detach(), row.detach(), tokens.grad, *(p.grad.clone() for p in module.parameters())]


def kept_maps(module: Attention, tokens: Tensor) -> int:
    """How many T x T maps the backward pass will find."""
    shapes = []

    def remember(kept: Tensor) -> Tensor:
        shapes.append(tuple(kept.shape[-2:]))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda kept: kept):
        module.train()(tokens, True)
    return shapes.count((TOKENS, TOKENS))


@pytest.mark.parametrize("preset", [WIDE, NARROW])
def test_training_computes_what_is_deployed(preset):
    module, tokens = attention(preset), torch.randn(3, TOKENS, preset.dim)
    trained, deployed = (outputs_and_gradients(module, tokens, training) for training in (True, False))
    for found, expected in zip(trained, deployed, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_in_bfloat16_it_differs_by_what_bfloat16_rounds():
    module, tokens = attention(WIDE), torch.randn(3, TOKENS, WIDE.dim)
    exact = outputs_and_gradients(module, tokens, False)
    with torch.autocast("cpu", torch.bfloat16):
        explicit, fused = (outputs_and_gradients(module, tokens, training) for training in (False, True))
    for found, other, expected in zip(fused, explicit, exact, strict=True):
        largest = float(expected.abs().max())
        rounding = float((other.float() - expected).abs().max()) / largest
        assert float((found.float() - expected).abs().max()) / largest < max(2 * rounding, 1e-2)


def test_wide_heads_keep_no_map_and_narrow_ones_on_a_cpu_do():
    assert kept_maps(attention(WIDE), torch.randn(3, TOKENS, WIDE.dim)) == 0
    assert kept_maps(attention(NARROW), torch.randn(3, TOKENS, NARROW.dim)) > 0


@pytest.mark.parametrize("blocks", [1])
def test_blocks_passed_one_part_after_the_other_are_all_blocks(blocks):
    torch.manual_seed(0)
    model = Lctr(WIDE, 3).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        whole = model.cues(images)
        parts = model.cues_from(model.halfway(images, blocks), blocks)
    torch.testing.assert_close(parts.features, whole.features)
    torch.testing.assert_close(parts.class_attention, whole.class_attention)
