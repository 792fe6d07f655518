import pytest
import torch
from tiny_vit import MEAN, STD

from calib.generator import GENERATORS, ConditionalBatchNorm, Generator, centre_cropped, doubled, generator_named
from toolchain.errors import UsageError

FAST = GENERATORS["fast"]


def images_of(size, classes=3, batch=4):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(FAST, classes, size, MEAN, STD)
        return generator, generator(torch.randn(batch, FAST.latent), torch.arange(batch) % classes)


@pytest.mark.parametrize("size", [16, 20, 23, 112])
def test_any_image_size(size):
    assert images_of(size)[1].shape == (4, 3, size, size)


def test_every_pixel_is_within_black_and_white():
    generator, images = images_of(32, batch=16)
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


def test_doubled_copies_each_pixel_four_times():
    assert doubled(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]


def test_centre_cropped():
    assert centre_cropped(torch.arange(16.0).view(1, 1, 4, 4), 2).flatten().tolist() == [5, 6, 9, 10]
    assert centre_cropped(torch.arange(9.0).view(1, 1, 3, 3), 2).flatten().tolist() == [0, 1, 3, 4]


def test_presets_by_name():
    assert generator_named("fast").widths == (64, 64, 32)
    assert generator_named("fast").magnification == 8
    with pytest.raises(UsageError, match="unknown generator 'big': choose one of fast"):
        generator_named("big")
