"""Every expected number here is worked out by hand."""

import pytest
import torch
from torch import tensor

from calib.moments import Moments, batch_moments, image_moments, pooled, relative_to


def test_image_and_batch_moments():
    positions = tensor([[[1.0], [3.0]], [[2.0], [2.0]]])
    assert image_moments(positions).mean.tolist() == [[2.0], [2.0]]
    assert image_moments(positions).variance.tolist() == [[1.0], [0.0]]
    # 1, 3, 2, 2: mean 2, squared distances 1, 1, 0, 0.
    assert batch_moments(positions).mean.tolist() == [2.0]
    assert batch_moments(positions).variance.tolist() == [0.5]


def test_pooled_moments_of_parts_are_those_of_the_whole():
    positions = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0)) + torch.arange(6.0)[:, None, None]
    whole = batch_moments(positions)
    parts = pooled([image_moments(positions[:4]), image_moments(positions[4:])])
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.variance, whole.variance)


def test_relative_to_is_in_units_of_the_reference_deviation():
    reference = Moments(tensor([1.0, 0.0]), tensor([4.0, 1.0]))
    relative = relative_to(reference, Moments(tensor([5.0, -2.0]), tensor([8.0, 0.5])))
    # Means: (5 - 1) / 2 and (-2 - 0) / 1. Variances: 8 / 4 and 0.5 / 1.
    assert relative.mean.tolist() == [2.0, -2.0]
    assert relative.variance.tolist() == [2.0, 0.5]


def test_relative_to_does_not_blow_up_a_dead_channel():
    reference = Moments(torch.zeros(2), tensor([0.0, 2.0]))
    relative = relative_to(reference, Moments(tensor([0.001, 0.0]), torch.zeros(2)))
    # floor of the variance: 1e-3 * mean(0, 2) = 1e-3
    assert relative.mean[0] == pytest.approx(0.001 / 0.001**0.5)


def test_relative_to_survives_a_layer_that_is_constant():
    zeros = Moments(torch.zeros(2), torch.zeros(2))
    assert relative_to(zeros, zeros).mean.tolist() == [0.0, 0.0]
