"""FP16: what it cannot hold is found and named, and what would not survive in it is computed in float32."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from toolchain.errors import DataError
from toolchain.half_precision import Float16, Held, with_activations
from toolchain.model import checkpoint, presets
from toolchain.model.deployment import DeployedLctr, Rpam
from toolchain.model.lctr import Lctr
from toolchain.model.presets import Preset
from toolchain.preprocessing import Preprocessing

SMALL = Preset("test", image_size=32, patch_size=8, dim=32, depth=2, heads=2)
WINDOW = Preprocessing(32, None, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where `images` holds three pictures, and the preset of the models is known."""
    root = tmp_path_factory.mktemp("half")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for k in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(root / "images" / f"{k}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, SMALL.name, SMALL)
        yield root


def write_model(path: Path, change: Callable[[Lctr], object]) -> Path:
    torch.manual_seed(0)
    model = Lctr(SMALL, 3)
    with torch.no_grad():
        change(model)
    checkpoint.save(model, ModelCard(SMALL.name, ("a", "b", "c"), WINDOW, 0.1), path)
    return path


def plant_small_weights(model: Lctr) -> None:
    model.patch_embed.proj.bias.fill_(2.0**-15)
    model.norm.weight[:8] = 2.0**-16
    model.norm.weight[8:12] = 2.0**-26


@dataclass(frozen=True)
class Exported:
    arguments: tuple[object, ...]
    half: Path
    found: dict[str, Any]


@pytest.fixture(scope="module")
def exported(folder: Path) -> Exported:
    """One export in FP16, looked at on the three images."""
    model = write_model(folder / "model.safetensors", plant_small_weights)
    arguments = ("export", model, "--precision", "fp16", "--images", folder / "images", "-o", folder / "half.onnx")
    told = lctr(*arguments, "--json")
    assert told.exit_code == 0, told.output
    return Exported(arguments, folder / "half.onnx", json.loads(told.stdout)["float16"])


def test_each_node_is_reported_on_the_images(exported: Exported):
    nodes = {held["name"]: held for held in exported.found["activations"]}
    assert exported.found["images"] == 3
    # Pixels of 0 to 1, normalized with mean 1/2 and deviation 1/4: the cast of the image reaches 2.
    assert nodes["Cast"]["amax"] == pytest.approx(2, abs=0.05)
    assert 0 < nodes["blocks.0/Softmax"]["amax"] <= 1
    assert {"blocks.1.mlp.fc2/MatMul", "conv3x3/Conv", "head.kernels/Gemm"} <= nodes.keys()
    # In float32, or only moved.
    assert {"rpam/Div", "Mul_1", "blocks.0/Reshape"}.isdisjoint(nodes)
    assert nodes.keys() <= {node.name for node in read_onnx(exported.half).graph.node}


def test_each_weight_is_reported(exported: Exported):
    weights = {held["name"]: held for held in exported.found["weights"]}
    assert weights["norm.weight"] == {"name": "norm.weight", "amax": 1, "subnormal": 12 / 32, "vanishing": 4 / 32}
    assert weights.keys() == {name for name, _ in Lctr(SMALL, 3).named_parameters()}


def test_the_table_names_what_is_held_badly(exported: Exported):
    told = lctr(*exported.arguments)
    assert told.exit_code == 0, told.output
    line = next(line for line in told.stdout.splitlines() if line.startswith("patch_embed.proj.bias"))
    assert line.split() == ["patch_embed.proj.bias", "3.05e-05", "100.0%", "0.0%"]
    assert re.search(r"FP16 without overflow: \d+ weights, \d+ nodes on 3 images\.", told.stdout)
    assert "Unchanged: reused." in told.stdout


@pytest.mark.parametrize(
    ("factor", "named"),
    [
        (1e7, r"Weight 'blocks\.0\.mlp\.fc1\.weight' holds .+ and float16 ends at 65504: .+--precision fp32\."),
        (
            6e5,
            r"Node 'blocks\.0\.mlp\.fc1/MatMul' reaches .+ and float16 ends at 65504 \(\d+ more .+--precision fp32\.",
        ),
    ],
)
def test_an_overflow_is_an_error_that_names_it_and_nothing_is_written(
    folder: Path, tmp_path: Path, factor: float, named: str
):
    model = write_model(tmp_path / "m.safetensors", lambda model: model.blocks[0].mlp.fc1.weight.mul_(factor))
    told = lctr("export", model, "--precision", "fp16", "--images", folder / "images", "-o", tmp_path / "half.onnx")
    assert (told.exit_code, told.stderr.count("\n")) == (1, 1)
    assert re.search(named, told.stderr)
    assert list(tmp_path.iterdir()) == [model]


HEADER = '<ir_version: 10, opset_import: ["" : 20]> g (float[b, 3, 1, 2] image) => (float[b, 3, 1, 2] logits) '
SINGLE = """{
    [double] twice = Mul (image, two)
    [out] logits = Identity (twice)
}"""
HALF = """{
    [Cast] narrow = Cast <to = 10> (image)
    [double] twice = Mul (narrow, two)
    [Cast_1] logits = Cast <to = 1> (twice)
}"""


def write_doubling(path: Path, text: str, dtype: type) -> Path:
    model = onnx.parser.parse_model(HEADER + text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2, dtype), "two"))
    write_onnx(model, path)
    return path


@pytest.mark.parametrize("cut", [[4], [1, 3], [1, 1, 1, 1]])
def test_the_report_does_not_depend_on_the_batches(tmp_path: Path, cut: list[int]):
    single = write_doubling(tmp_path / "single.onnx", SINGLE, np.float32)
    half = write_doubling(tmp_path / "half.onnx", HALF, np.float16)
    images = np.array([0, 1, -3, 2.0**-15, 2.0**-26, 0.5], np.float32).reshape(1, 3, 1, 2)
    images = np.concatenate([images, images / 2, images * 4, images])
    batches = np.split(images, np.cumsum(cut)[:-1])
    found = with_activations(Float16(()), single, half, batches)
    # Of 4 x 5 values other than 0, those of 2^-15 are under 2^-14 but where they are four times as much, and doubled
    # only where they are half as much; those of 2^-26 always are, and but for the four times as much under 2^-24.
    assert found == Float16((), (Held("Cast", 12.0, 7 / 20, 3 / 20), Held("double", 24.0, 5 / 20, 3 / 20)), images=4)


def test_no_image_is_an_error(tmp_path: Path):
    single = write_doubling(tmp_path / "single.onnx", SINGLE, np.float32)
    half = write_doubling(tmp_path / "half.onnx", HALF, np.float16)
    with pytest.raises(DataError, match="No calibration image came"):
        with_activations(Float16(()), single, half, [])


def test_images_without_fp16_are_a_contradiction(folder: Path, exported: Exported):
    told = lctr(*exported.arguments[:2], "--images", folder / "images", "-o", folder / "m.onnx")
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


def test_sums_are_in_float32_in_the_file(exported: Exported):
    graph = read_onnx(exported.half)
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in (*onnx.shape_inference.infer_shapes(graph).graph.value_info, *graph.graph.output)
    }
    by_name = {node.name: types[node.output[0]] for node in graph.graph.node if node.name.startswith("rpam/")}
    single = {"rpam/Softmax", "rpam/Softmax_1", "rpam/ReduceMean", "rpam/ReduceMean_1", "rpam/ReduceSum", "rpam/Div"}
    assert {by_name[name] for name in single} == {onnx.TensorProto.FLOAT}
    assert {by_name[name] for name in ("rpam/MatMul", "rpam/MatMul_1")} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("attention", ["none", "all"])
def test_a_float16_file_is_quantized(folder: Path, tmp_path: Path, exported: Exported, attention: str):
    half, int8 = exported.half, tmp_path / "int8.onnx"
    told = lctr("quantize", half, "--images", folder / "images", "--attention", attention, "-o", int8, "--json")
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
def test_a_quantized_float16_file_compiles_to_int8_with_fused_attention(
    folder: Path, tmp_path: Path, exported: Exported, attention: str
):
    int8, engine = tmp_path / "int8.onnx", tmp_path / "int8.engine"
    assert (
        lctr("quantize", exported.half, "--images", folder / "images", "--attention", attention, "-o", int8).exit_code
        == 0
    )
    assert lctr("build", int8, "--backend", "tensorrt-rtx", "-o", engine).exit_code == 0
    found = json.loads(lctr("inspect", engine, "--json").stdout)
    assert found["counts"]["convolution"] == {"int8": 2}
    assert found["counts"]["linear"]["int8"] == 9
    assert found["counts"]["attention"].get("int8", 0) == (4 if attention == "all" else 0)
    assert found["fused_attention"] == SMALL.depth
