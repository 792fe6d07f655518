"""Our LCTR against what the authors' released implementation computes from the same weights and images."""

from copy import deepcopy

import golden
import numpy as np
import pytest
import torch

from toolchain.boxes import box_from_map
from toolchain.model.lctr import Lctr

CLOSE = 1e-4
"""Of the largest value of each array (spec/lctr.md, "Proving equality")."""


@pytest.fixture(scope="module")
def model() -> Lctr:
    return golden.golden_model()


@pytest.fixture(scope="module")
def units() -> torch.Tensor:
    with np.load(golden.ROUNDING) as file:
        return torch.from_numpy(file["units"])


@pytest.fixture(scope="module")
def off(model: Lctr, units: torch.Tensor) -> golden.Arrays:
    images = golden.moved(golden.golden_images(), units)
    return golden.off(golden.arrays_of(deepcopy(model).double(), images))


@pytest.mark.parametrize("name", golden.Arrays._fields)
def test_released_arrays_are_exact_ones_of_images_within_rounding(off: golden.Arrays, name: str) -> None:
    assert getattr(off, name).abs().max() <= CLOSE


def test_those_images_are_the_golden_ones_but_for_rounding(units: torch.Tensor) -> None:
    # Half a unit in the last place of float32 is one unit of these just below a power of two, and two just above; and
    # the first sums that each patch goes through, of 768 products, are rounded hundreds of times.
    assert units.abs().max() <= 10
    assert units.double().square().mean().sqrt() <= 1


@pytest.mark.parametrize("name", golden.Arrays._fields)
def test_float32_is_exact_where_attention_does_not_magnify_its_rounding(model: Lctr, name: str) -> None:
    calmer = deepcopy(model)
    for block in calmer.blocks:
        block.attn.qkv.weight /= 2
    images = golden.golden_images()
    found = getattr(golden.arrays_of(calmer, images), name)
    exact = getattr(golden.arrays_of(calmer.double(), images.double()), name)
    assert (found - exact).abs().max() <= CLOSE * exact.abs().max()


def test_the_localizer_returns_these_logits_and_this_map(model: Lctr) -> None:
    images = golden.golden_images()
    arrays, localized = golden.arrays_of(model, images), model(images)
    assert torch.equal(localized.logits, arrays.logits)
    assert torch.equal(localized.map, arrays.fused)


def test_boxes_are_identical_at_every_threshold(model: Lctr) -> None:
    released = golden.released()
    for fused, expected in zip(model(golden.golden_images()).map.numpy(), released["boxes"], strict=True):
        found = [box_from_map(fused, 224, float(tau)).box for tau in released["thresholds"]]
        assert found == [tuple(box) for box in expected.tolist()]


def test_parameter_counts_are_the_published_ones(model: Lctr) -> None:
    released = golden.released()
    counts = {name: value.numel() for name, value in model.named_parameters()}
    head = sum(count for name, count in counts.items() if name.startswith(("conv3x3.", "CDM.")))
    assert sum(counts.values()) == int(released["params"]) == 25_761_232
    assert sum(counts.values()) - head == 21_665_664
