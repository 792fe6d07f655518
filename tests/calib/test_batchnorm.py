import pytest
import torch
from tiny_cnn import LAYERS, tiny_cnn
from tiny_vit import labelled_images, teacher
from torch import nn

from calib.batchnorm import batchnorm_view, deep_layers, running_moments
from calib.moments import batch_moments
from calib.observation import frozen, observing
from calib.statistics import collect
from toolchain.errors import ModelError


def inputs_of(model, images):
    with frozen(model), torch.no_grad(), observing(model, batchnorm_view(model)) as observation:
        model(images)
        return observation.take()


def test_every_position_is_a_vector_of_channels():
    images, _ = labelled_images(2)
    assert [tuple(seen.shape) for seen in inputs_of(tiny_cnn(), images)] == [(6, 64, 4), (6, 16, 8), (6, 1, 8)]


def test_moments_are_those_that_torch_puts_into_the_running_statistics():
    model, (images, _) = tiny_cnn(), labelled_images(4)
    for layer, seen in zip(LAYERS, inputs_of(model, images), strict=True):
        count = seen.shape[0] * seen.shape[1]
        # Momentum 1 keeps the last batch alone; torch's running variance is the unbiased one.
        norm = nn.BatchNorm1d(seen.shape[2], momentum=1)
        norm(seen.flatten(0, 1))
        moments = batch_moments(seen)
        torch.testing.assert_close(moments.mean, norm.running_mean, msg=layer)
        torch.testing.assert_close(moments.variance * count / (count - 1), norm.running_var, msg=layer)


def test_running_moments_are_copies_in_the_order_of_the_view():
    model = tiny_cnn()
    found = running_moments(model)
    assert [tuple(m.mean.shape) for m in found] == [(4,), (8,), (8,)]
    model.bn2.running_var.zero_()
    assert found[1].variance.min() > 0


def test_norms_without_running_statistics_do_not_count():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3))
    assert batchnorm_view(model).layers == ("1",)
    with pytest.raises(ModelError, match="Linear has no BatchNorm with running statistics"):
        batchnorm_view(nn.Linear(2, 2))


@pytest.mark.parametrize(("count", "first"), [(20, 8), (52, 24), (27, 12), (3, 0), (1, 0)])
def test_the_published_rule_for_deep_layers(count, first):
    # 20 of ResNet-18, 52 of MobileNetV2; int((27 + 1) / 2) - 2 = 12 of MobileNetV1.
    layers = [f"bn{k}" for k in range(count)]
    assert deep_layers(layers) == tuple(layers[first:])


def test_class_centers_are_pooled_over_images_and_positions():
    model, (images, labels) = tiny_cnn(), labelled_images(5)
    found = collect(
        teacher(model), batchnorm_view(model), [(images, labels)], min_images=5, chosen=lambda _: ("bn2", "bn3")
    )
    assert list(found.centers) == ["bn2", "bn3"]
    for layer, seen in zip(LAYERS, inputs_of(model, images), strict=True):
        torch.testing.assert_close(found.overall[layer].mean, seen.mean((0, 1)), rtol=1e-4, atol=1e-5)
        if layer in found.centers:
            own = seen[labels == 1].flatten(0, 1)
            center = found.centers[layer].center.row(1)
            torch.testing.assert_close(center.mean, own.mean(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(center.variance, own.var(0, correction=0), rtol=1e-4, atol=1e-5)
