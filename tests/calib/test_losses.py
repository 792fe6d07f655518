"""Every expected number here is worked out by hand in the comment beside it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from calib.losses import bns_loss, centralized_loss, distorted, distorted_loss, total_variation
from calib.moments import Moments


def test_bns_loss_is_a_mean_over_layers_of_two_mean_squares():
    observed = [
        Moments(tensor([1.0, 3.0]), tensor([2.0, 2.0])),
        Moments(tensor([0.0]), tensor([5.0])),
    ]
    targets = [
        Moments(tensor([0.0, 1.0]), tensor([2.0, 0.0])),
        Moments(tensor([1.0]), tensor([2.0])),
    ]
    # layer 1: (1 + 4)/2 + (0 + 4)/2 = 4.5; layer 2: 1 + 9 = 10; mean 7.25
    assert bns_loss(observed, targets).item() == 7.25
    assert centralized_loss(observed, targets).item() == 7.25


def test_bns_loss_of_each_image():
    observed = [Moments(tensor([[1.0, 3.0], [0.0, 1.0]]), tensor([[2.0, 2.0], [2.0, 0.0]]))]
    target = [Moments(tensor([0.0, 1.0]), tensor([2.0, 0.0]))]
    # The first image: (1 + 4)/2 + (0 + 4)/2 = 4.5; the second is the target itself.
    assert bns_loss(observed, target).tolist() == [4.5, 0.0]


def test_layers_of_different_width_weigh_the_same():
    wide = [Moments(torch.ones(10), torch.ones(10)), Moments(torch.ones(1), torch.ones(1))]
    zero = [Moments(torch.zeros(10), torch.ones(10)), Moments(torch.ones(1), torch.ones(1))]
    assert bns_loss(wide, zero).item() == 0.5


def test_no_layer_is_an_error_not_a_zero():
    with pytest.raises(ValueError, match="no layer"):
        bns_loss([], [])


def test_layers_without_a_target_are_an_error():
    one = Moments(torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        bns_loss([one, one], [one])


def test_distortion_has_the_measured_spread():
    center = Moments(torch.full((20_000,), 3.0), torch.full((20_000,), 100.0))
    spread = Moments(torch.full((20_000,), 0.5), torch.full((20_000,), 2.0))
    drawn = distorted(center, spread, torch.Generator().manual_seed(0))
    assert drawn.mean.mean().item() == pytest.approx(3, abs=0.02)
    assert drawn.mean.std().item() == pytest.approx(0.5, rel=0.03)
    assert drawn.variance.std().item() == pytest.approx(2, rel=0.03)


positive = st.floats(0, 100, allow_subnormal=False, width=32)


@given(center=positive, spread=positive, seed=st.integers(0, 1000))
def test_no_distorted_variance_is_negative(center, spread, seed):
    center = Moments(torch.zeros(50), torch.full((50,), center))
    drawn = distorted(center, Moments(torch.zeros(50), torch.full((50,), spread)), torch.Generator().manual_seed(seed))
    assert (drawn.variance >= 0).all()


def test_one_number_distorts_every_channel():
    center = Moments(torch.zeros(20_000), torch.full((20_000,), 10.0))
    drawn = distorted(center, Moments(tensor([0.5]), tensor([1.0])), torch.Generator().manual_seed(0))
    assert drawn.mean.std().item() == pytest.approx(0.5, rel=0.03)
    assert drawn.variance.std().item() == pytest.approx(1, rel=0.03)


def test_distorted_targets_are_redrawn_at_every_call_and_repeat_with_the_seed():
    center, spread = Moments(torch.zeros(4), torch.ones(4)), Moments(torch.ones(4), torch.ones(4))
    first, second = (torch.Generator().manual_seed(7) for _ in range(2))
    losses = [distorted_loss([center], [center], [spread], first).item() for _ in range(2)]
    assert losses[0] != losses[1]
    assert losses == [distorted_loss([center], [center], [spread], second).item() for _ in range(2)]


def test_distorted_loss_without_spread_is_the_centralized_loss():
    observed = [Moments(tensor([1.0]), tensor([3.0]))]
    center = [Moments(tensor([2.0]), tensor([1.0]))]
    still = [Moments(torch.zeros(1), torch.zeros(1))]
    # 1 + 4
    assert distorted_loss(observed, center, still, torch.Generator()).item() == 5
    assert centralized_loss(observed, center).item() == 5


def test_total_variation():
    image = tensor([[0.0, 1.0], [4.0, 2.0]]).expand(1, 3, 2, 2)
    # Vertical is the mean of 4 and 1, 2.5. Horizontal is the mean of 1 and 2, 1.5.
    assert total_variation(image).item() == 4
    assert total_variation(torch.ones(2, 3, 5, 5)).item() == 0
