"""Our LCTR against what the authors' released implementation computes from the same weights and images."""

from pathlib import Path
from typing import NamedTuple

import golden_weights
import numpy as np
import pytest
import torch

from toolchain.boxes import box_from_map
from toolchain.model.lctr import Lctr
from toolchain.model.presets import preset_named
from toolchain.model.rpam import relational_map

RELEASED = Path(__file__).parent.parent / "data" / "lctr_official_c200.npz"


class Computed(NamedTuple):
    logits: np.ndarray
    cls_attn: np.ndarray
    rpam: np.ndarray
    fused: np.ndarray


@pytest.fixture(scope="module")
def released() -> dict[str, np.ndarray]:
    with np.load(RELEASED) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model(released) -> Lctr:
    model = Lctr(preset_named("lctr-small"), int(released["num_classes"])).eval()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = golden_weights.state_dict(shapes, int(released["seed"]))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model


@pytest.fixture(scope="module")
def computed(model, released) -> Computed:
    images = torch.from_numpy(golden_weights.images(len(released["logits"]), int(released["seed"])))
    with torch.no_grad():
        localized = model(images)
        _, attentions = model.tokens(images)
        cues = model.cues(images)
    rpam = relational_map(attentions, model.preset.grid)
    return Computed(*(t.numpy() for t in (localized.logits, cues.class_attention, rpam, localized.map)))


@pytest.mark.parametrize("name", Computed._fields)
def test_arrays_are_the_released_ones(computed, released, name):
    expected = released[name]
    assert np.abs(getattr(computed, name) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_boxes_are_identical_at_every_threshold(computed, released):
    for fused, expected in zip(computed.fused, released["boxes"], strict=True):
        found = [box_from_map(fused, 224, float(tau)).box for tau in released["thresholds"]]
        assert found == [tuple(box) for box in expected.tolist()]


def test_parameter_counts_are_the_published_ones(model, released):
    counts = {name: value.numel() for name, value in model.named_parameters()}
    head = sum(count for name, count in counts.items() if name.startswith(("conv3x3.", "CDM.")))
    assert sum(counts.values()) == int(released["params"]) == 25_761_232
    assert sum(counts.values()) - head == 21_665_664
