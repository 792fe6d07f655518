"""An honest export passes; a graph that computes something else is caught and named."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from exporters.parity import compare
from exporters.torch_export import onnx_from_torch
from toolchain.errors import BackendError, ModelError, ParityError
from toolchain.model.lctr import Lctr
from toolchain.model.presets import Preset

SMALL = Preset("test", image_size=16, patch_size=8, dim=8, depth=2, heads=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Lctr(SMALL, 3)


@pytest.fixture(scope="module")
def exported(model):
    return onnx_from_torch(model, image_size=16, metadata={})


@pytest.fixture
def saved(exported, tmp_path):
    def save(change=lambda graph: None):
        changed = onnx.ModelProto()
        changed.CopyFrom(exported)
        change(changed.graph)
        onnx.save(changed, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return save


def times(name, factor):
    """A change: one initializer multiplied."""

    def change(graph):
        tensor = next(i for i in graph.initializer if i.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))

    return change


def test_an_honest_export_holds_silently(model, saved, capfd):
    parity = compare(model, saved(), image_size=16)
    assert [(d.output, d.batch) for d in parity.deviations] == [("logits", 1), ("map", 1), ("logits", 3), ("map", 3)]
    assert parity.worst.error < 1e-5
    assert all(d.magnitude > 0 for d in parity.deviations)
    assert model.training
    assert capfd.readouterr() == ("", "")


def test_the_error_is_relative_to_the_largest_reference(model, saved):
    """The map is linear in the mean over layers, whose divisor appears nowhere else: twice it is half the map."""
    parity = compare(model, saved(times("scalar_tensor_default_1", 2)), image_size=16, tolerance=1)
    assert {d.output: d.error for d in parity.deviations if d.batch == 1} == {
        "logits": pytest.approx(0, abs=1e-5),
        "map": pytest.approx(0.5, abs=1e-5),
    }


def test_names_the_worst_output(model, saved):
    with pytest.raises(ParityError, match=r"^Output 'map' of .+ deviates .+ 0\.5 .+ more than 0\.0001: .+\.$"):
        compare(model, saved(times("scalar_tensor_default_1", 2)), image_size=16)


@pytest.mark.parametrize("factor", [1.01, math.nan, math.inf])
def test_one_changed_weight_is_found(model, saved, factor):
    with pytest.raises(ParityError):
        compare(model, saved(times("patch_embed.proj.weight", factor)), image_size=16)


def test_a_batch_that_is_not_dynamic_is_found(model, saved):
    def fix(graph):
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    with pytest.raises(BackendError, match=r"does not run .+ at batch sizes 1, 3 \(") as caught:
        compare(model, saved(fix), image_size=16)
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_model_or_another(model, saved, tmp_path):
    with pytest.raises(ModelError, match="check the path"):
        compare(model, tmp_path / "absent.onnx", image_size=16)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match="no whole ONNX model"):
        compare(model, tmp_path / "text.onnx", image_size=16)
    with pytest.raises(ModelError, match=r"2 outputs \(logits, map\) and the model 1"):
        compare(nn.Flatten(), saved(), image_size=16)
