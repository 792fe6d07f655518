"""FP16: what it cannot hold is found and named, and what would not survive in it is computed in float32."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from deployment import lctr
from PIL import Image

from engines.registry import open_engine
from exporters.files import read_onnx, write_onnx
from exporters.torch_export import onnx_from_torch
from toolchain.card import ModelCard
from toolchain.model import checkpoint, presets
from toolchain.model.deployment import DeployedLctr, Rpam
from toolchain.model.lctr import Lctr
from toolchain.model.presets import Preset
from toolchain.preprocessing import Preprocessing

SMALL = Preset("test", image_size=32, patch_size=8, dim=32, depth=2, heads=2)
WINDOW = Preprocessing(32, None, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def write_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(presets.PRESETS, SMALL.name, SMALL)

    def write(change=lambda model: None) -> Path:
        torch.manual_seed(0)
        model = Lctr(SMALL, 3)
        with torch.no_grad():
            change(model)
        checkpoint.save(model, ModelCard(SMALL.name, ("a", "b", "c"), WINDOW, 0.1), tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    return write


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for k in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "images" / f"{k}.png")
    return tmp_path / "images"


def exported(model: Path, *options: object) -> dict:
    told = lctr("export", model, "--precision", "fp16", *options, "-o", model.with_name("half.onnx"), "--json")
    assert told.exit_code == 0, told.output
    return json.loads(told.stdout)["float16"]


def test_each_node_is_reported_on_the_images(write_model, images: Path):
    found = exported(write_model(), "--images", images)
    nodes = {held["name"]: held for held in found["activations"]}
    assert found["images"] == 3
    # Pixels of 0 to 1, normalized with mean 1/2 and deviation 1/4: the cast of the image reaches 2.
    assert nodes["Cast"]["amax"] == pytest.approx(2, abs=0.05)
    # Probabilities are at most 1; the mean of RPAM's relations is in float32 and not reported.
    assert 0 < nodes["blocks.0/Softmax"]["amax"] <= 1
    assert {"blocks.1.mlp.fc2/MatMul", "conv3x3/Conv", "head.kernels/Gemm"} <= nodes.keys()
    assert {"rpam/Div", "Mul_1", "blocks.0/Reshape"}.isdisjoint(nodes)
    in_file = {n.name for n in read_onnx(images.parent / "half.onnx").graph.node}
    assert nodes.keys() <= in_file


def test_one_image_at_a_time_is_all_images_together(write_model, images: Path):
    model = write_model()
    alone = [
        {held["name"]: held["amax"] for held in exported(model, "--images", images, "--count", n)["activations"]}
        for n in (1, 3)
    ]
    assert all(alone[0][name] <= alone[1][name] for name in alone[0])
    assert alone[0] != alone[1]


def test_without_images_the_weights_are_reported(write_model):
    def change(model: Lctr) -> None:
        model.norm.weight[:8] = 2.0**-16
        model.norm.weight[8:12] = 2.0**-26

    found = exported(write_model(change))
    weights = {held["name"]: held for held in found["weights"]}
    assert (found["images"], found["activations"]) == (0, [])
    assert weights["norm.weight"] == {"name": "norm.weight", "amax": 1, "subnormal": 12 / 32, "vanishing": 4 / 32}
    assert weights.keys() == {name for name, _ in Lctr(SMALL, 3).named_parameters()}


def test_the_table_names_what_is_held_badly(write_model, images: Path):
    model = write_model(lambda model: model.patch_embed.proj.bias.fill_(2.0**-15))
    told = lctr("export", model, "--precision", "fp16", "--images", images, "-o", model.with_name("half.onnx"))
    assert told.exit_code == 0, told.output
    line = next(line for line in told.stdout.splitlines() if line.startswith("patch_embed.proj.bias"))
    assert line.split() == ["patch_embed.proj.bias", "3.05e-05", "100.0%", "0.0%"]
    assert "FP16 without overflow: " in told.stdout
    assert "nodes on 3 images." in told.stdout


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.blocks[0].mlp.fc1.weight.mul_(1e7), r"Weight 'blocks\.0\.mlp\.fc1\.weight' holds .+"),
        (lambda m: m.blocks[0].mlp.fc1.weight.mul_(6e5), r"Node 'blocks\.0\.mlp\.fc1/MatMul' reaches .+"),
    ],
)
def test_an_overflow_is_an_error_that_names_it_and_nothing_is_written(write_model, images: Path, change, named: str):
    model = write_model(change)
    before = sorted(model.parent.rglob("*"))
    told = lctr("export", model, "--precision", "fp16", "--images", images, "-o", model.with_name("half.onnx"))
    assert told.exit_code == 1
    assert told.stderr.count("\n") == 1
    assert re.search(named, told.stderr)
    assert "float16 ends at 65504" in told.stderr
    assert "--precision fp32" in told.stderr
    assert sorted(model.parent.rglob("*")) == before


def test_images_without_fp16_are_a_contradiction(write_model, images: Path):
    model = write_model()
    told = lctr("export", model, "--images", images, "-o", model.with_name("m.onnx"))
    assert (told.exit_code, told.stderr.count("\n")) == (2, 1)
    assert "--precision is fp32: leave --images out" in told.stderr


def half_and_single(change) -> tuple[Lctr, DeployedLctr]:
    torch.manual_seed(0)
    model = Lctr(SMALL, 3).eval()
    with torch.no_grad():
        change(model)
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model, DeployedLctr(model, precision=torch.float16)


@torch.no_grad()
def test_layer_norm_s_statistics_are_in_float32(tmp_path: Path):
    """Tokens near 10^4, whose squares float16 cannot hold: in a file of FP16 types the answer is still the model's."""
    model, half = half_and_single(lambda m: m.pos_embed.mul_(5e5))
    images = torch.randn(2, 3, 32, 32)
    assert 5e3 < model.embed(images).abs().max() < 65504
    graph = onnx_from_torch(half, image_size=32, metadata={})
    norms = [n for n in graph.graph.node if n.op_type == "LayerNormalization"]
    assert len(norms) == 2 * SMALL.depth + 1
    for norm in norms:
        types = {a.name: a.i for a in norm.attribute}
        assert types.get("stash_type", onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT
    write_onnx(graph, tmp_path / "half.onnx")
    with open_engine(tmp_path / "half.onnx") as session:
        found = session.run({"image": images.numpy()})
    expected = model(images)
    for name, value in (("logits", expected.logits), ("map", expected.map)):
        assert np.abs(found[name] - value.numpy()).max() <= 2e-2 * float(value.abs().max())


def test_softmax_and_rpam_with_scores_near_the_end_of_float16():
    """Every token attends to the next one alone, with a score of 4e4, whose exponential nothing could hold.

    Class token 0 -> token 1 -> token 2: the class token's attention is on patch 1 (token 1), the second hop on patch 2,
    where the relation is 1 / T.
    """
    grid, count, heads, layers = 2, 5, 2, 3
    tokens = 200 * torch.eye(count, 8).half()
    queries = tokens.expand(1, layers * heads, count, 8)
    keys = tokens.roll(1, 0)  # row t + 1 is what query t looks for
    class_attention, relation = Rpam(layers, grid)(queries, keys.expand_as(queries))
    assert (class_attention.dtype, relation.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(class_attention, torch.tensor([[[1.0, 0], [0, 0]]]))
    torch.testing.assert_close(relation, torch.tensor([[[0, 0.2], [0, 0]]]))


def test_sums_are_in_float32_in_the_file(tmp_path: Path):
    torch.manual_seed(0)
    graph = onnx_from_torch(DeployedLctr(Lctr(SMALL, 3), precision=torch.float16), image_size=32, metadata={})
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in (*onnx.shape_inference.infer_shapes(graph).graph.value_info, *graph.graph.output)
    }
    by_name = {node.name: types[node.output[0]] for node in graph.graph.node if node.name.startswith("rpam/")}
    single = {"rpam/Softmax", "rpam/Softmax_1", "rpam/ReduceMean", "rpam/ReduceMean_1", "rpam/ReduceSum", "rpam/Div"}
    assert {by_name[name] for name in single} == {onnx.TensorProto.FLOAT}
    assert {by_name[name] for name in ("rpam/MatMul", "rpam/MatMul_1")} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("attention", ["none", "all"])
def test_a_float16_file_is_quantized(write_model, images: Path, attention: str):
    model = write_model()
    exported(model)
    half, int8 = model.with_name("half.onnx"), model.with_name("int8.onnx")
    told = lctr("quantize", half, "--images", images, "--attention", attention, "-o", int8, "--json")
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout)
    blocks = {f"blocks.{i}.{m}/MatMul" for i in range(2) for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    products = {f"blocks.{i}/{m}" for i in range(2) for m in ("MatMul", "MatMul_1")} if attention == "all" else set()
    others = {"patch_embed.proj/Conv", "conv3x3/Conv", "head.kernels/Gemm"}
    assert set(record["quantized"]) == blocks | others | products
    assert {"rpam/MatMul", "rpam/MatMul_1", "rpam/MatMul_2", "rpam/Softmax"} <= record["left_float"].keys()
    assert record["gathers"] == ["head/Gather"]
    batch = np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32)
    with open_engine(half) as before, open_engine(int8) as after:
        expected, found = before.run({"image": batch}), after.run({"image": batch})
    assert np.abs(found["logits"] - expected["logits"]).max() <= 0.1 * np.abs(expected["logits"]).max()
    scales = {i.name: onnx.numpy_helper.to_array(i) for i in read_onnx(int8).graph.initializer}
    assert {v.dtype for name, v in scales.items() if name.endswith("/scale")} == {np.dtype(np.float16)}
    # White is 2 in normalized pixels, whatever the images reached: the patch embedding reads a cast of the input.
    patches = next(n for n in read_onnx(int8).graph.node if n.name == "patch_embed.proj/Conv").input[0]
    assert scales[patches.replace("/dequantized", "/scale")] == np.float16(2 / 127)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["none", "all"])
def test_a_quantized_float16_file_compiles_to_int8_with_fused_attention(write_model, images: Path, attention: str):
    model = write_model()
    exported(model)
    half, int8, engine = (model.with_name(name) for name in ("half.onnx", "int8.onnx", "int8.engine"))
    assert lctr("quantize", half, "--images", images, "--attention", attention, "-o", int8).exit_code == 0
    assert lctr("build", int8, "--backend", "tensorrt-rtx", "-o", engine).exit_code == 0
    found = json.loads(lctr("inspect", engine, "--json").stdout)
    assert found["counts"]["convolution"] == {"int8": 2}
    assert found["counts"]["linear"]["int8"] == 9
    assert found["counts"]["attention"].get("int8", 0) == (4 if attention == "all" else 0)
    assert found["fused_attention"] == SMALL.depth
