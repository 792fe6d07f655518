"""Our LCTR against what the authors' released implementation computes from the same weights and images."""

from copy import deepcopy

import golden
import numpy as np
import pytest
import torch

from toolchain.boxes import box_from_map
from toolchain.model.lctr import Lctr, Localized

CLOSE = 1e-4
"""Of the largest value of each array (spec/lctr.md, "Proving equality")."""


@pytest.fixture(scope="module")
def model() -> Lctr:
    return golden.golden_model()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return golden.golden_images()


@pytest.fixture(scope="module")
def localized(model: Lctr, images: torch.Tensor) -> Localized:
    return model(images)


@pytest.fixture(scope="module")
def units() -> torch.Tensor:
    with np.load(golden.ROUNDING) as file:
        return torch.from_numpy(file["units"])


@pytest.fixture(scope="module")
def off(model: Lctr, images: torch.Tensor, units: torch.Tensor) -> golden.Arrays:
    return golden.off(golden.arrays_of(deepcopy(model).double(), golden.moved(images, units)))


@pytest.fixture(scope="module")
def calm(model: Lctr, images: torch.Tensor) -> tuple[golden.Arrays, golden.Arrays]:
    """With attention half as peaked: in float32, and in float64."""
    calmer = deepcopy(model)
    for block in calmer.blocks:
        block.attn.qkv.weight /= 2
    return golden.arrays_of(calmer, images), golden.arrays_of(deepcopy(calmer).double(), images.double())


@pytest.mark.parametrize("name", golden.Arrays._fields)
def test_released_arrays_are_exact_ones_of_images_within_rounding(off: golden.Arrays, name: str) -> None:
    assert getattr(off, name).abs().max() <= CLOSE


def test_those_images_are_the_golden_ones_but_for_rounding(units: torch.Tensor) -> None:
    # Half a unit in the last place of float32 is one unit of these just below a power of two, and two just above; and
    # the first sums that each patch goes through, of 768 products, are rounded hundreds of times.
    assert units.abs().max() <= 10
    assert units.double().square().mean().sqrt() <= 1


@pytest.mark.parametrize("name", golden.Arrays._fields)
def test_float32_is_exact_where_attention_does_not_magnify_its_rounding(
    calm: tuple[golden.Arrays, golden.Arrays], name: str
) -> None:
    found, exact = (getattr(arrays, name) for arrays in calm)
    assert (found - exact).abs().max() <= CLOSE * exact.abs().max()


def test_the_localizer_returns_these_logits_and_this_map(
    model: Lctr, images: torch.Tensor, localized: Localized
) -> None:
    arrays = golden.arrays_of(model, images)
    assert torch.equal(localized.logits, arrays.logits)
    assert torch.equal(localized.map, arrays.fused)


def test_boxes_are_identical_at_every_threshold(localized: Localized) -> None:
    released = golden.released()
    for fused, expected in zip(localized.map.numpy(), released["boxes"], strict=True):
        found = [box_from_map(fused, 224, float(tau)).box for tau in released["thresholds"]]
        assert found == [tuple(box) for box in expected.tolist()]


def test_parameter_counts_are_the_published_ones(model: Lctr) -> None:
    released = golden.released()
    counts = {name: value.numel() for name, value in model.named_parameters()}
    head = sum(count for name, count in counts.items() if name.startswith(("conv3x3.", "CDM.")))
    assert sum(counts.values()) == int(released["params"]) == 25_761_232
    assert sum(counts.values()) - head == 21_665_664
