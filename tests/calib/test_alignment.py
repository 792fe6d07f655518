"""Every expected number here is worked out by hand in the comment beside it."""

from dataclasses import replace

import pytest
import torch
from torch import nn, tensor

from calib.alignment import batchnorm_alignment, token_alignment
from calib.moments import Moments, image_moments
from calib.statistics import Centers, Population, Statistics
from calib.tokens import token_view
from toolchain.errors import ModelError

POPULATION = Population((9, 9), (9, 9), min_images=8, classes=(1,), pooled=(), left_out=())
CENTERS = Centers(Moments(tensor([[3.0]]), tensor([[2.0]])), Moments(tensor([[0.0]]), tensor([[0.0]])))
# Two positions 0 and 2: mean 1, variance 1.
SEEN = tensor([[[0.0], [2.0]]])


def norm(mean, variance):
    layer = nn.BatchNorm2d(1)
    layer.running_mean.fill_(mean)
    layer.running_var.fill_(variance)
    return layer


def of_tokens(population=POPULATION, centers=None):
    overall = {"early": Moments(tensor([0.0]), tensor([1.0])), "late": Moments(tensor([1.0]), tensor([4.0]))}
    statistics = Statistics(population, overall, {}, {"late": CENTERS} if centers is None else centers)
    return token_alignment(token_view(["early", "late"]), statistics, torch.device("cpu"))


def of_batchnorms(population=POPULATION, relative=False):
    overall = {str(k): Moments(tensor([7.0]), tensor([7.0])) for k in range(2)}
    statistics = Statistics(population, overall, {}, {"1": CENTERS})
    return batchnorm_alignment(nn.Sequential(norm(0, 1), norm(1, 4)), statistics, relative=relative)


def test_tokens_are_compared_in_units_of_their_deviation():
    losses = of_tokens().losses([SEEN] * 2, [SEEN] * 2, 1, torch.Generator())
    # early: (1 - 0)^2 + (1 - 1)^2 = 1. late: 0 + (1/4 - 1)^2 = 0.5625. Their mean.
    assert losses["bns"].item() == 0.78125
    # Only late has a center: mean ((1 - 1)/2 - (3 - 1)/2)^2 = 1, variance (1/4 - 2/4)^2 = 0.0625.
    assert losses["centralized"].item() == losses["distorted"].item() == 1.0625


def test_batchnorm_inputs_are_compared_as_they_are_with_the_running_statistics():
    losses = of_batchnorms().losses([SEEN] * 2, [SEEN] * 2, 1, torch.Generator().manual_seed(0))
    # First layer: (1 - 0)^2 + (1 - 1)^2 = 1. Second: (1 - 1)^2 + (1 - 4)^2 = 9. Their mean.
    assert losses["bns"].item() == 5
    # The second alone has a center: (1 - 3)^2 + (1 - 2)^2.
    assert losses["centralized"].item() == 5
    assert losses["distorted"].item() != 5


def test_batchnorm_inputs_are_compared_in_units_of_the_running_deviation():
    found = of_batchnorms(relative=True)
    losses = found.losses([SEEN] * 2, [SEEN] * 2, 1, torch.Generator())
    # The same running statistics as the tokens' global ones above, and the same losses: the measured spread is 0.
    assert losses["bns"].item() == 0.78125
    assert losses["centralized"].item() == losses["distorted"].item() == 1.0625
    relative = batchnorm_alignment(nn.Sequential(norm(0, 1), norm(1, 4)), None, relative=True)
    assert relative.losses([SEEN] * 2, [SEEN] * 2, 1, torch.Generator())["bns"].item() == 0.78125


def test_the_distance_of_an_image_is_its_own_bns_loss():
    # Two images; the second has 0 and 4: mean 2, variance 4.
    images = torch.cat([SEEN, tensor([[[0.0], [4.0]]])])
    # In units of the deviation. The first as above: (1 + 0.5625) / 2. The second: early (2 - 0)^2 + (4 - 1)^2 = 13,
    # late ((2 - 1)/2)^2 + (4/4 - 1)^2 = 0.25; their mean is 6.625.
    assert of_tokens().distance([images] * 2, image_moments).tolist() == [0.78125, 6.625]
    # As they are. The first: 5, as above. The second: (4 + 9) and (2 - 1)^2 + (4 - 4)^2 = 1; their mean is 7.
    assert of_batchnorms().distance([images] * 2, image_moments).tolist() == [5, 7]


def test_the_published_noise():
    targets = of_batchnorms().layers[1].by_class
    assert targets.spread.mean.tolist() == [[0.5]]
    assert targets.spread.variance.tolist() == [[1.0]]


def test_the_measured_spread_is_the_noise_of_relative_moments():
    spread = Moments(tensor([[4.0]]), tensor([[8.0]]))
    overall = {"0": Moments(tensor([7.0]), tensor([7.0]))}
    statistics = Statistics(POPULATION, overall, {}, {"0": Centers(CENTERS.center, spread)})
    found = batchnorm_alignment(nn.Sequential(norm(1, 4)), statistics, relative=True)
    targets = found.layers[0].by_class
    # The running deviation is 2: 4 / 2 and 8 / 2^2.
    assert targets.spread.mean.tolist() == [[2.0]]
    assert targets.spread.variance.tolist() == [[2.0]]


@pytest.mark.parametrize("alignment", [of_tokens, of_batchnorms])
def test_a_class_without_a_center_has_the_global_loss_alone(alignment):
    found = alignment()
    assert found.classes == (1,)
    assert set(found.losses([SEEN] * 2, [SEEN] * 2, 0, torch.Generator())) == {"bns"}
    assert found.missing == ("1 classes without a center: left out of L_D and L_C",)


@pytest.mark.parametrize("alignment", [of_tokens, of_batchnorms])
def test_a_class_that_the_network_mistakes_guides_nothing(alignment):
    found = alignment(replace(POPULATION, recognized=(9, 4)))
    assert found.classes == ()
    assert set(found.losses([SEEN] * 2, [SEEN] * 2, 1, torch.Generator())) == {"bns"}
    assert found.missing[1] == "1 classes that the network mistakes for others: left out of L_D and L_C"
    assert alignment(replace(POPULATION, recognized=(0, 5))).classes == (1,)


def test_it_is_said_where_nobody_counted_what_the_network_recognizes():
    found = of_tokens(replace(POPULATION, recognized=None))
    assert found.classes == (1,)
    assert found.missing[1].startswith("the statistics do not say which classes the network mistakes")


def test_without_calibration_statistics_the_running_ones_remain():
    found = batchnorm_alignment(nn.Sequential(norm(0, 1), norm(1, 4)), None, relative=False)
    assert found.losses([SEEN] * 2, [SEEN] * 2, 1, torch.Generator())["bns"].item() == 5
    assert found.missing == ("no calibration statistics: L_D and L_C were left out, L_BNS and cross-entropy remain",)


def test_no_layer_that_separates_classes_is_said():
    assert of_tokens(centers={}).missing == ("no layer separates the classes: L_D and L_C were left out",)
    assert of_tokens(centers={}).classes == ()


def test_statistics_of_other_layers_are_refused():
    statistics = Statistics(POPULATION, {"bn": Moments(torch.ones(1), torch.ones(1))}, {}, {})
    with pytest.raises(ModelError, match="of other layers"):
        batchnorm_alignment(nn.Sequential(norm(0, 1)), statistics, relative=False)


def test_deviation_ratio():
    wide = [Moments(tensor([5.0]), tensor([9.0])), Moments(tensor([5.0]), tensor([1.0]))]
    # 3 / 1 and 1 / 2.
    assert of_tokens().deviation_ratio(wide) == {"early": 3, "late": 0.5}
    assert of_batchnorms().deviation_ratio(wide) == {"0": 3, "1": 0.5}
