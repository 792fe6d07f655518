import pytest
import torch
from tiny_vit import MEAN, STD

from calib.generator import FAST, PAPER, ConditionalBatchNorm, DoublingConvolution, Generator, centre_cropped


def images_of(size, config=FAST, classes=3, batch=4):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(config, classes, size, MEAN, STD)
        return generator, generator(torch.randn(batch, config.latent), torch.arange(batch) % classes)


@pytest.mark.parametrize("config", [FAST, PAPER], ids=["fast", "paper"])
@pytest.mark.parametrize("size", [16, 23, 112])
def test_any_image_size(config, size):
    assert images_of(size, config)[1].shape == (4, 3, size, size)


def test_the_published_generator_layer_by_layer():
    generator, _ = images_of(16, PAPER, classes=5)
    shapes = {name: tuple(value.shape) for name, value in generator.named_parameters()}
    # z of 100 to 128 channels on a grid of 16 / 4; up, 128; up, 64; 3. A scale and a shift per class behind each but
    # the last, whose BatchNorm is not affine.
    assert shapes == {
        "linear.weight": (128 * 4 * 4, 100),
        "linear.bias": (128 * 4 * 4,),
        **{f"convolutions.{k}.bias": (n,) for k, n in enumerate((128, 64, 3))},
        **{f"convolutions.{k}.weight": s for k, s in enumerate(((128, 128, 3, 3), (64, 128, 3, 3), (3, 64, 3, 3)))},
        **{f"norms.{k}.{part}.weight": (5, n) for k, n in enumerate((128, 128, 64)) for part in ("scale", "shift")},
    }
    assert [norm.normalize.eps for norm in generator.norms] == [1e-5, 0.8, 0.8]


def test_the_published_colours_are_normalized_over_the_batch():
    _, images = images_of(16, PAPER)
    pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    slope = torch.tensor([s / (m * (1 - m)) for m, s in zip(MEAN, STD, strict=True)]).view(3, 1, 1)
    # The sigmoid undone: what the last BatchNorm gave.
    colours = (torch.logit(pixels) - torch.logit(torch.tensor(MEAN).view(3, 1, 1))) / slope
    torch.testing.assert_close(colours.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(colours.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-2, rtol=0)


@pytest.mark.parametrize("config", [FAST, PAPER], ids=["fast", "paper"])
def test_every_pixel_is_within_black_and_white(config):
    generator, images = images_of(32, config, batch=16)
    pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    extreme = generator.pixels(torch.tensor([-1e4, 1e4]).view(1, 1, 2).expand(3, 1, 2))
    assert extreme[:, 0, 0].tolist() == [0, 0, 0]
    assert extreme[:, 0, 1].tolist() == [1, 1, 1]


def test_the_pixel_map_has_value_and_slope_of_the_normalization_in_the_middle():
    generator, _ = images_of(16)
    middle = torch.zeros(3, 1, 1, requires_grad=True)
    pixels = generator.pixels(middle)
    pixels.sum().backward()
    torch.testing.assert_close(pixels.flatten(), torch.tensor(MEAN))
    torch.testing.assert_close(middle.grad.flatten(), torch.tensor(STD))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.485, 1 / 255), (1.0, 0.25)])
def test_a_normalization_that_only_scales_says_nothing_of_colours(mean, std):
    torch.manual_seed(0)
    generator = Generator(PAPER, 3, 16, (mean,) * 3, (std,) * 3)
    images = generator(torch.randn(8, PAPER.latent), torch.arange(8) % 3)
    pixels = images * std + mean
    # A sigmoid of deviation 1 at slope 1: 0.2, and about 0.5 in the middle.
    assert pixels.mean().item() == pytest.approx(0.5, abs=0.02)
    assert pixels.std().item() == pytest.approx(0.21, abs=0.03)


def test_a_class_is_a_scale_and_a_shift():
    norm = ConditionalBatchNorm(1, 2)
    with torch.no_grad():
        norm.scale.weight.copy_(torch.tensor([[1.0], [3.0]]))
        norm.shift.weight.copy_(torch.tensor([[0.0], [5.0]]))
    # BatchNorm makes -1 and 1 of 2 and 4.
    out = norm(torch.tensor([2.0, 4.0]).view(2, 1, 1, 1), torch.tensor([0, 1]))
    torch.testing.assert_close(out.flatten(), torch.tensor([-1.0, 8.0]), rtol=1e-4, atol=1e-4)


def test_the_label_changes_the_image():
    generator, _ = images_of(16)
    with torch.no_grad():
        z = torch.randn(4, FAST.latent, generator=torch.Generator().manual_seed(0))
        first, second = (generator(z, torch.full((4,), label)) for label in (0, 1))
    assert not torch.allclose(first, second)


def test_doubling_convolution_by_hand():
    convolution = DoublingConvolution(1, 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.arange(1.0, 10).view(1, 1, 3, 3))
        convolution.bias.fill_(100)
    # Up-sampled: 1 1 2 2 twice, then 3 3 4 4 twice. Its first pixel meets the taps 5 6 8 9, all on ones; the second of
    # the second row 1 2 3 / 4 5 6 / 7 8 9 on 1 1 2 / 1 1 2 / 3 3 4.
    found = convolution(torch.tensor([[[[1.0, 2], [3, 4]]]]))[0, 0]
    assert found.shape == (4, 4)
    assert found[0, 0] == 128
    assert found[1, 1] == 100 + (1 + 2 + 6) + (4 + 5 + 12) + (21 + 24 + 36)


@pytest.mark.parametrize("shape", [(2, 5, 1, 1), (1, 5, 3, 4), (3, 5, 7, 2)])
def test_doubling_convolution_is_a_convolution_of_the_doubled_grid(shape):
    torch.manual_seed(0)
    convolution, features = DoublingConvolution(5, 4).double(), torch.randn(shape, dtype=torch.float64)
    doubled = features.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = torch.nn.functional.conv2d(doubled, convolution.weight, convolution.bias, padding=1)
    torch.testing.assert_close(convolution(features), expected)


def test_centre_cropped():
    assert centre_cropped(torch.arange(16.0).view(1, 1, 4, 4), 2).flatten().tolist() == [5, 6, 9, 10]
    assert centre_cropped(torch.arange(9.0).view(1, 1, 3, 3), 2).flatten().tolist() == [0, 1, 3, 4]
