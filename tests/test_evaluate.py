"""`lctr evaluate` by every protocol: on the bundled checkpoint, and on ONNX files of either form."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from deployment import lctr
from onnx import helper, numpy_helper, parser

from toolchain.card import ModelCard
from toolchain.curve import Part, curves_from_parts
from toolchain.data.shapes import CLASSES, PREPROCESSING, Shapes
from toolchain.protocols import LCTR, TSCAM

FEW = 40
CLASS_COUNT = len(CLASSES)
WEIGHT = np.random.default_rng(3).standard_normal((CLASS_COUNT, 3)).astype(np.float32)
GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
localizer (float[b, 3, 112, 112] image) => (OUTPUTS) {
    pooled = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (image)
    maps = Conv (pooled, weight)
    axes = Constant <value_ints = [2, 3]> ()
    logits = ReduceMean <keepdims = 0> (maps, axes)
    channels = Constant <value_ints = [1]> ()
    brightness = ReduceMean <keepdims = 0> (pooled, channels)
    attention = Exp (brightness)
    map = Relu (attention)
}
"""
"""A toy of a localizer: colours tell classes, light tells where to look."""
ALL_MAPS = "float[b, 12] logits, float[b, 12, 14, 14] maps, float[b, 14, 14] attention"
TOP1_MAP = "float[b, 12] logits, float[b, 14, 14] map"


def onnx_file(path: Path, outputs: str) -> Path:
    model = parser.parse_model(GRAPH.replace("OUTPUTS", outputs))
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT[:, :, None, None], "weight"))
    helper.set_model_props(model, ModelCard("toy", Shapes.class_names, PREPROCESSING, 0.4).to_metadata())
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def all_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_file(tmp_path_factory.mktemp("toy") / "all.onnx", ALL_MAPS)


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """The toy once more, in numpy, on the first test images."""
    samples = [Shapes("test", FEW)[k] for k in range(FEW)]
    images = PREPROCESSING.normalize(np.stack([sample.image for sample in samples]))
    pooled = images.reshape(FEW, 3, 14, 8, 14, 8).mean((3, 5))
    maps = np.einsum("kc,bchw->bkhw", WEIGHT, pooled)
    return {
        "logits": maps.mean((2, 3)),
        "maps": np.exp(pooled.mean(1))[:, None] * np.maximum(maps, 0),
        "labels": np.array([sample.label for sample in samples]),
        "boxes": [sample.boxes for sample in samples],
    }


def evaluated(file: Path, *options: object) -> dict[str, Any]:
    told = lctr("evaluate", file, "--images", FEW, *options, "--json")
    assert told.exit_code == 0, told.output
    return json.loads(told.stdout)


@pytest.mark.parametrize("protocol", [LCTR, TSCAM])
def test_an_onnx_file_of_all_maps_serves_every_protocol(protocol, all_maps: Path, shown: dict[str, Any]) -> None:
    classes = shown["labels"] if protocol.true_class else shown["logits"].argmax(1)
    part = Part(shown["logits"], shown["maps"][np.arange(FEW), classes], shown["labels"], shown["boxes"])
    expected = curves_from_parts(protocol, [part], 112, np.array([0.4]))
    found = evaluated(all_maps, "--protocol", protocol.name, "--tau", "0.4")
    assert {key: found[key] for key in expected.rates} == {key: rate[0] for key, rate in expected.rates.items()}
    assert (found["top1"], found["top5"], found["images"]) == (expected.top1, expected.top5, FEW)
    assert 0 < found["gt_known_loc"] < 100


def test_an_onnx_file_of_one_map_serves_lctr_alone(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "top1.onnx", TOP1_MAP)
    assert evaluated(file)["protocol"] == "lctr"
    told = lctr("evaluate", file, "--protocol", "tscam", "--curve", tmp_path / "c.json")
    assert told.exit_code == 1
    assert told.stderr == (
        f"Error: {file} gives the map of its predicted class alone, and protocol tscam needs that of the true class: "
        "export the model with --maps all.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["top1.onnx"]


def test_a_pickle_is_sent_to_import(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "c.pth")
    told = lctr("evaluate", tmp_path / "c.pth")
    assert told.exit_code == 1
    assert told.stderr.endswith("make one of it with `lctr import`.\n")


def test_a_checkpoint_serves_every_protocol(model: Path) -> None:
    lctr_, tscam, v1, v2 = (
        evaluated(model, "--protocol", name) for name in ("lctr", "tscam", "maxboxacc", "maxboxaccv2")
    )
    # The images are as large as the input: squashing changes nothing, and so does no protocol for the classes.
    assert {(found["top1"], found["top5"]) for found in (lctr_, tscam, v1, v2)} == {(lctr_["top1"], lctr_["top5"])}
    assert [found["tau_from"] for found in (lctr_, tscam, v1, v2)] == ["model", "val", "best", "best"]
    assert tscam["tau_source"] == f"chosen on {FEW} images of val"
    for found in (lctr_, tscam):
        assert found["top1_loc"] <= found["top5_loc"] <= found["gt_known_loc"]
    # More contours to choose from, and one more chance to be right.
    assert v2["max_box_acc_v2_50"] >= v1["max_box_acc"] > 50
    parts = [v2[f"max_box_acc_v2_{iou}"] for iou in (30, 50, 70)]
    assert parts == sorted(parts, reverse=True)
    assert v2["max_box_acc_v2"] == pytest.approx(sum(parts) / 3)
    honest = evaluated(model, "--protocol", "maxboxacc", "--tau-from", "val")
    assert honest["box_acc"] <= v1["max_box_acc"]
    assert evaluated(model, "--protocol", "maxboxacc", "--tau", v1["tau"])["box_acc"] == v1["max_box_acc"]


def test_the_table_names_the_protocol_and_where_tau_is_from(model: Path) -> None:
    told = lctr("evaluate", model, "--images", FEW, "--protocol", "maxboxaccv2").stdout
    head, row, *rest = told.splitlines()
    assert head.split()[:4] == ["protocol", "images", "Top-1", "Top-5"]
    assert "MaxBoxAccV2 IoU 0.7" in head
    assert row.split()[:3] == ["lctr-nano.safetensors", "maxboxaccv2", str(FEW)]
    assert " for MaxBoxAccV2 IoU 0.3, " in rest[0]
    assert "best over the evaluated images themselves, as the protocol defines it; protocol maxboxaccv2; " in rest[0]
    assert re.search(r"; \d+\.\d images/s\.$", rest[0])
    plain = lctr("evaluate", model, "--images", FEW).stdout
    assert "GT-Known Loc" in plain
    assert "from the model's metadata; protocol lctr; " in plain
    given = lctr("evaluate", model, "--images", FEW, "--protocol", "maxboxacc", "--tau", "0.2").stdout
    assert "MaxBoxAcc" not in given
    assert "tau 0.2, given by --tau; protocol maxboxacc; " in given


def test_curves_are_written_as_json_and_as_a_picture(model: Path, tmp_path: Path) -> None:
    curves = [tmp_path / "c.json", tmp_path / "c.png"]
    found = evaluated(model, "--curve", curves[0], "--curve", curves[1])
    record = json.loads(curves[0].read_text())
    at = record["curve"]["tau"].index(found["tau"])
    assert record["curve"]["gt_known_loc"][at] == found["gt_known_loc"]
    assert curves[1].read_bytes().startswith(b"\x89PNG")
    assert lctr("verify", tmp_path).exit_code == 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--protocol", "pxap"), "unknown protocol 'pxap'"),
        (("--tau", "1.5"), "--tau 1.5 is no share of a map's maximum"),
        (("--tau", "0.1", "--tau-from", "val"), "contradict each other"),
        (("--tau-from", "published"), "--tau-from published is unknown"),
        (("--tau-from", "best"), "protocol lctr does not"),
        (("--protocol", "tscam", "--tau-from", "model"), "is for protocol lctr, not tscam"),
        (("--protocol", "tscam", "--split", "val"), "tau chosen on val says nothing on --split val"),
        (("--curve", "c.pdf"), "--curve c.pdf ends neither in .json nor in .png"),
    ],
)
def test_wrong_usage_exits_with_2(options: tuple[str, ...], complaint: str, all_maps: Path) -> None:
    told = lctr("evaluate", all_maps, *options)
    assert told.exit_code == 2
    assert complaint in told.stderr
    assert told.stderr.count("\n") == 1
    assert told.stdout == ""
