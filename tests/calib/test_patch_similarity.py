"""Expected numbers are worked out by hand, or are a closed form's."""

import math

import numpy as np
import pytest
import torch
from tiny_vit import ATTENTION, CLASSES, teacher
from torch import tensor

from calib.descent import jittered
from calib.patch_similarity import (
    PRESETS,
    PatchSimilarity,
    PatchSimilarityConfig,
    density,
    differential_entropy,
    pair_density,
    patch_similarities,
    patch_similarity_loss,
    similarity_entropy,
    variation,
)
from calib.synthesis import synthesize
from toolchain.errors import TrainingError, UsageError


def test_similarity_is_the_cosine_of_the_angle_between_patches():
    patches = tensor([[[2.0, 0.0], [5.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    half = math.sqrt(0.5)
    expected = tensor([[1, 1, 0, half], [1, 1, 0, half], [0, 0, 1, half], [half, half, half, 1]])
    torch.testing.assert_close(patch_similarities(patches)[0], expected)


def test_density_of_one_sample_is_the_kernel():
    found = density(tensor([[0.3]]), tensor([0.3, 0.31, 0.9]))
    # 1 / (0.01 sqrt(2 pi)), e^-1/2 of it one deviation away, nothing sixty away.
    peak = 39.894228
    torch.testing.assert_close(found[0], tensor([peak, peak * math.exp(-0.5), 0.0]), rtol=1e-4, atol=1e-6)


def test_density_is_the_mean_of_the_kernels_and_integrates_to_one():
    points = torch.linspace(-0.2, 1.2, 2001)
    found = density(tensor([[0.1, 0.4, 0.4, 0.8]]), points)
    assert torch.trapezoid(found, points).item() == pytest.approx(1, rel=1e-4)
    assert found[0, points.sub(0.4).abs().argmin()].item() == pytest.approx(39.894228 / 2, rel=1e-3)


def test_density_has_the_gradient_of_its_formula():
    samples = torch.tensor([[0.30, 0.31, 0.5], [-0.2, 0.29, 0.3]], dtype=torch.float64, requires_grad=True)
    points = torch.tensor([0.295, 0.305, 0.9], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: density(x, points), samples)


def test_each_pair_of_patches_counts_twice_and_a_patch_with_itself_once():
    similarities = patch_similarities(torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)))
    points = torch.linspace(-1, 1, 50)
    everything = density(similarities.flatten(1), points)
    torch.testing.assert_close(pair_density(similarities, points), everything, rtol=1e-4, atol=1e-5)


def test_entropy_of_a_gaussian():
    points = torch.linspace(-1.5, 1.5, 3001)
    gaussian = torch.exp(-0.5 * (points / 0.2) ** 2) / (0.2 * math.sqrt(2 * math.pi))
    # ln(deviation sqrt(2 pi e)), but for the floor of 1e-4 under the density.
    assert differential_entropy(gaussian[None], points).item() == pytest.approx(
        math.log(0.2 * math.sqrt(2 * math.pi * math.e)), abs=3e-3
    )


def test_patches_that_differ_have_more_entropy_than_patches_that_do_not():
    random = torch.Generator().manual_seed(0)
    common = torch.randn(1, 1, 8, generator=random)
    patches = torch.randn(2, 16, 8, generator=random)
    varied, alike = patches + common, 0.05 * patches + common
    assert similarity_entropy(varied) > similarity_entropy(alike)
    total = patch_similarity_loss([varied, alike])
    torch.testing.assert_close(total, -similarity_entropy(varied) - similarity_entropy(alike))


def test_variation():
    image = tensor([[0.0, 1.0], [4.0, 2.0]])[None, None]
    # Along rows 1 and -2, along columns 4 and 1, along the diagonals 4 - 1 and 2 - 0.
    assert variation(image).item() == pytest.approx(math.sqrt(5) + math.sqrt(17) + 3 + 2)


def test_the_learning_rate_rises_and_falls_twice():
    config = PatchSimilarityConfig(steps=20)
    rates = [config.rate(step) for step in range(20)]
    assert rates[:10] == rates[10:]
    # A fifth of ten steps to warm up, then half a cosine over the other eight.
    assert rates[:3] == [0.1, 0.2, 0.2]
    assert rates[6] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(0.1 * (1 + math.cos(math.pi * 7 / 8)))


def test_the_released_constants():
    paper = PRESETS["paper"]
    # Two passes of 500 iterations, 100 of them to warm up, on 32 images.
    assert (paper.steps, paper.batch, paper.learning_rate, paper.betas) == (1000, 32, 0.2, (0.5, 0.9))
    assert paper.rate(99) == 0.2
    assert paper.rate(98) < 0.2


def test_jitter_moves_pixels_and_loses_none():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    random = torch.Generator().manual_seed(0)
    seen = {tuple(jittered(image, 0.5, random).flatten().tolist()) for _ in range(40)}
    # Shifts by -2 to 2 of 4 pixels are four different ones, each as it is or mirrored.
    assert len(seen) == 8
    assert all(sorted(pixels) == list(range(16)) for pixels in seen)


def test_pixels_are_changed_until_the_loss_is_lower():
    config = PatchSimilarityConfig(steps=80, learning_rate=0.03)
    losses = synthesize(PatchSimilarity(config, ATTENTION), teacher(), count=CLASSES, seed=0).losses
    assert set(losses) == {"total", "patch_similarity", "cross_entropy", "total_variation"}
    assert len(losses["total"]) == 80
    assert losses["total"][0] == pytest.approx(sum(losses[name][0] for name in losses if name != "total"), rel=1e-4)
    assert np.mean(losses["total"][-5:]) < np.mean(losses["total"][:5])


def test_patches_that_follow_the_loss_come_to_differ():
    random = torch.Generator().manual_seed(0)
    patches = torch.randn(1, 1, 8, generator=random) + 0.05 * torch.randn(2, 16, 8, generator=random)
    patches.requires_grad_()
    optimizer = torch.optim.Adam([patches], 0.02)
    losses = []
    for _ in range(60):
        losses.append(patch_similarity_loss([patches]))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


def test_impossible_configurations_and_divergence():
    with pytest.raises(UsageError, match="steps is 1"):
        PatchSimilarityConfig(steps=1)
    method = PatchSimilarity(PatchSimilarityConfig(steps=2), ATTENTION)
    broken = teacher(classifier=lambda model, images: model(images) * torch.nan)
    with pytest.raises(TrainingError, match="loss is nan at step 1"):
        synthesize(method, broken, count=2, seed=0)
