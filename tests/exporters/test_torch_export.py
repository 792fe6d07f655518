"""One test per rule of the export, and what it refuses."""

import logging
import warnings

import onnx
import pytest
import torch
from torch import nn

from exporters.placement import placement_from_model
from exporters.torch_export import onnx_from_torch
from toolchain.errors import ModelError
from toolchain.model.lctr import Lctr
from toolchain.model.presets import PRESETS, Preset

SMALL = Preset("test", image_size=16, patch_size=8, dim=8, depth=2, heads=2)
CARD = {"tau": "0.5", "preset": "test"}


def localizer(preset=SMALL, classes=3):
    torch.manual_seed(0)
    return Lctr(preset, classes)


def export(model, **changes):
    return onnx_from_torch(model, **{"image_size": 16, "metadata": CARD, **changes})


@pytest.fixture(scope="module")
def exported():
    return export(localizer())


def shape(value):
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_rule_1_contract(exported):
    graph = exported.graph
    assert {v.name: shape(v) for v in graph.input} == {"image": ["batch", 3, 16, 16]}
    assert {v.name: shape(v) for v in graph.output} == {"logits": ["batch", 3], "map": ["batch", 2, 2]}
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    assert [(o.domain, o.version) for o in exported.opset_import] == [("", 20)]
    assert {d.dim_param for v in graph.value_info for d in v.type.tensor_type.shape.dim} <= {"", "batch"}


def test_rule_2_names_are_module_paths_and_unique(exported):
    names = [node.name for node in exported.graph.node]
    assert len(set(names)) == len(names)
    assert {
        "patch_embed.proj/Conv",
        "blocks.0.attn.qkv/MatMul",
        "blocks.1.mlp.act/Gelu",
        "CDM._routing_fn_two.fc2/Gemm",
        "blocks.0/Add",
        "blocks.0/Add_1",
        "CDM/Conv",
        "ArgMax",
    } <= set(names)
    assert all(name.split("/")[-1].startswith(n.op_type) for name, n in zip(names, exported.graph.node, strict=True))


def test_rule_3_nothing_of_this_machine_stays(exported):
    content = exported.SerializeToString()
    assert not [word for word in (b".py", b"/work", b"/usr", b"/home", b"/root", b"Traceback") if word in content]
    assert {p.key for n in exported.graph.node for p in n.metadata_props} == {"pkg.torch.onnx.name_scopes"}


def test_rule_4_metadata_is_the_callers_in_key_order(exported):
    assert [(p.key, p.value) for p in exported.metadata_props] == [("preset", "test"), ("tau", "0.5")]
    assert exported.producer_name == "lctr"


def test_rule_5_same_bytes(exported):
    assert export(localizer()).SerializeToString() == exported.SerializeToString()


def test_rule_6_evaluation_mode_and_back():
    model = nn.Sequential(nn.Conv2d(3, 2, 16), nn.Dropout(0.5), nn.Flatten())
    model.train()
    model[0].eval()
    exported = export(model, output_names=["scores"])
    assert [node.op_type for node in exported.graph.node] == ["Conv", "Reshape"]
    assert [m.training for m in model] == [False, True, True]


def test_placement_on_the_smallest_preset():
    preset = PRESETS["lctr-nano"]
    placement = placement_from_model(export(localizer(preset, 12), image_size=preset.image_size), ["*_routing_fn_two*"])
    linears = {f"blocks.{i}.{m}" for i in range(preset.depth) for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert {site.module for site in placement.sites} == linears | {"patch_embed.proj", "conv3x3", "CDM"}
    assert len(placement.sites) == 4 * preset.depth + 3
    kept = [left.name for left in placement.left if "rule 3" in left.reason]
    assert kept == ["CDM._routing_fn_two.fc/Gemm", "CDM._routing_fn_two.fc2/Gemm"]


def test_says_nothing(capfd, caplog):
    with warnings.catch_warnings(record=True) as said:
        export(nn.Flatten(), output_names=["scores"])
    assert capfd.readouterr() == ("", "")
    assert not said
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    assert logging.root.manager.disable == logging.NOTSET


class Undecided(nn.Module):
    def forward(self, images):
        return (images, images) if images.sum() > 0 else (-images, images)


class FixedBatch(nn.Module):
    def forward(self, images):
        return images.reshape(2, 768), images.reshape(2, 768)


class OnlyFirst(nn.Module):
    def forward(self, images):
        return images.sum((1, 2, 3)), images[:1].flatten(1)


def test_refuses_what_torch_cannot_export(capfd):
    with pytest.raises(ModelError, match=r"^Undecided cannot be exported to ONNX \(.+\): .+\.$") as caught:
        export(Undecided())
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("module", "message"),
    [(FixedBatch(), r"'logits' has the shape \(2, 768\)"), (OnlyFirst(), r"'map' has the shape \(1, 768\)")],
)
def test_refuses_an_output_without_batch(module, message):
    with pytest.raises(ModelError, match=message):
        export(module)


def test_refuses_another_number_of_outputs():
    with pytest.raises(ModelError, match=r"^The module returns 2 tensors, .+: name each tensor once\.$"):
        export(OnlyFirst(), output_names=["logits"])
