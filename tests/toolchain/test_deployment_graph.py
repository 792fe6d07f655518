"""The deployed form against the plain model: each rewrite alone, the whole in torch, and the exported graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from deployment import lctr

from engines.registry import open_engine
from exporters.files import read_onnx, write_onnx
from exporters.torch_export import onnx_from_torch
from toolchain.boxes import box_from_map, iou
from toolchain.data.shapes import PREPROCESSING, Shapes
from toolchain.model import checkpoint
from toolchain.model.cdm import CueDiggingModule, pooled_logits, pooling_weights, shifted_weights
from toolchain.model.deployment import AllMaps, DeployedLctr, PooledHead, Rpam
from toolchain.model.lctr import Lctr
from toolchain.model.presets import Preset
from toolchain.model.rpam import class_token_map, relational_map

SMALL = Preset("test", image_size=40, patch_size=8, dim=24, depth=3, heads=3)


def random_lctr(classes: int) -> Lctr:
    """Every parameter random: a fresh model's routing is constant, and hides errors behind it."""
    torch.manual_seed(classes)
    model = Lctr(SMALL, classes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 40, 40, generator=torch.Generator().manual_seed(batch))


def deviation(found: np.ndarray | torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    difference = np.abs(np.asarray(found) - expected.numpy()).max()
    return float(difference / expected.abs().max())


def boxes(maps: np.ndarray | torch.Tensor) -> list[tuple[float, ...]]:
    return [box_from_map(np.asarray(m), 40, 0.2).box for m in maps]


def test_pooling_weights_by_hand():
    # A position of a 3 x 3 grid lies in 4, 6 or 9 windows of the box filter, each of which divides by 9.
    expected = torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]]) / 81
    torch.testing.assert_close(pooling_weights(3, 3).float(), expected)


def test_the_bias_share_of_the_paper():
    assert float(pooling_weights(14, 14).sum()) == pytest.approx((40 / 42) ** 2)


def test_each_tap_sees_the_weights_moved_against_it():
    weights = torch.arange(1.0, 7).reshape(2, 3)
    first, centre, last = (shifted_weights(weights)[tap].reshape(2, 3) for tap in (0, 4, 8))
    # The first tap reads up and to the left of a position: what is read here belongs to the position down and right.
    torch.testing.assert_close(first, torch.tensor([[5.0, 6, 0], [0, 0, 0]]))
    torch.testing.assert_close(centre, weights)
    torch.testing.assert_close(last, torch.tensor([[0.0, 0, 0], [0, 1, 2]]))


@torch.no_grad()
def test_rewrites_1_and_2_logits_and_one_map_without_class_maps():
    torch.manual_seed(0)
    cdm = CueDiggingModule(dim=6, num_classes=7, experts=4)
    cdm.bias.normal_()
    features, routing = torch.randn(3, 6, 5, 5), torch.rand(3, 4)
    kernel = torch.einsum("bg,gcduv->bcduv", routing, cdm.weight)
    maps = torch.stack(
        [torch.conv2d(f[None], k, cdm.bias, padding=1)[0] for f, k in zip(features, kernel, strict=True)]
    )
    head, patches = PooledHead(cdm, 5), features.flatten(2).transpose(1, 2)
    torch.testing.assert_close(head.logits(patches, routing), pooled_logits(maps))
    labels = torch.tensor([6, 0, 3])
    torch.testing.assert_close(head.map(patches, routing, labels), maps[torch.arange(3), labels], atol=1e-5, rtol=1e-4)


def test_rewrite_3_relations_from_queries_and_keys():
    layers, heads, grid = 3, 2, 4
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 2, layers * heads, 1 + grid**2, 8, generator=generator)
    attentions = [
        (q @ k.transpose(-2, -1)).softmax(-1).mean(1)
        for q, k in zip(queries.split(heads, 1), keys.split(heads, 1), strict=True)
    ]
    class_attention, relation = Rpam(layers, grid)(queries, keys)
    torch.testing.assert_close(class_attention, class_token_map(attentions, grid))
    torch.testing.assert_close(relation, relational_map(attentions, grid))


@torch.no_grad()
@pytest.mark.parametrize("classes", [10, 200, 1000])
def test_the_exported_graph_equals_the_plain_model(classes: int, tmp_path: Path):
    model, path = random_lctr(classes), tmp_path / "model.onnx"
    write_onnx(onnx_from_torch(DeployedLctr(model), image_size=40, metadata={}), path)
    with open_engine(path) as session:
        for batch in (1, 2, 7):
            plain, found = model(images(batch)), session.run({"image": images(batch).numpy()})
            assert deviation(found["logits"], plain.logits) <= 1e-4
            assert deviation(found["map"], plain.map) <= 1e-4
            assert boxes(found["map"]) == boxes(plain.map)


@torch.no_grad()
def test_all_maps_are_those_of_the_plain_model():
    model = random_lctr(10)
    found, plain = DeployedLctr(model, all_maps=True)(images(2)), AllMaps(model)(images(2))
    for ours, theirs in zip(found, plain, strict=True):
        assert deviation(ours, theirs) <= 1e-5


def test_no_value_of_the_graph_is_as_large_as_the_class_maps(tmp_path: Path):
    model = onnx_from_torch(DeployedLctr(random_lctr(1000)), image_size=40, metadata={})
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim[1:]]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    weights = {i.name for i in model.graph.initializer}
    largest = max(int(np.prod(shape)) for name, shape in shapes.items() if name not in weights)
    assert largest < 1000 * SMALL.grid**2
    # The kernels are there once, for the logits and for the gathered class alike.
    assert sum(int(np.prod(i.dims)) == 4 * 1000 * 9 * SMALL.dim for i in model.graph.initializer) == 1


def test_nodes_keep_the_names_of_their_modules():
    names = {n.name for n in onnx_from_torch(DeployedLctr(random_lctr(3)), image_size=40, metadata={}).graph.node}
    assert {
        "patch_embed.proj/Conv",
        "blocks.0.attn.qkv/MatMul",
        "blocks.2/Softmax",
        "rpam/Softmax",
        "conv3x3/Conv",
        "CDM._routing_fn_two.fc2/Gemm",
        "head.kernels/Gemm",
    } <= names


@pytest.fixture(scope="module")
def real_images() -> np.ndarray:
    return PREPROCESSING.normalize(np.stack([Shapes("test")[i].image for i in range(24)]))


@pytest.fixture(scope="module")
def half(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "model.onnx"
    exported = lctr("export", model, "--precision", "fp16", "-o", path)
    assert exported.exit_code == 0, exported.output
    return path


@torch.no_grad()
def test_fp16_costs_the_map_no_more_than_rounding_the_weights(model: Path, half: Path, real_images: np.ndarray):
    plain, card = checkpoint.load(model)
    expected = plain(torch.from_numpy(real_images)).map.numpy()
    for parameter in plain.parameters():
        parameter.copy_(parameter.half())
    rounded = plain(torch.from_numpy(real_images)).map.numpy()
    with open_engine(half) as session:
        found = session.run({"image": real_images})["map"]
    error, unavoidable = (np.abs(min_max(maps) - min_max(expected)).max((1, 2)) for maps in (found, rounded))
    assert np.median(error) <= 1e-3
    assert np.median(error) <= 2 * np.median(unavoidable)
    agreement = [
        iou(*(box_from_map(maps[k], 112, card.tau).box for maps in (found, expected))) for k in range(len(found))
    ]
    assert min(agreement) >= 0.9


def test_no_hop_that_matters_is_subnormal_in_fp16(half: Path, real_images: np.ndarray, tmp_path: Path):
    graph = read_onnx(half)
    hops = [n.output[0] for n in graph.graph.node if n.name.startswith("rpam/MatMul")][-1]
    graph.graph.output.add(name=hops)
    write_onnx(graph, tmp_path / "hops.onnx")
    with open_engine(tmp_path / "hops.onnx") as session:
        found = session.run({"image": real_images})[hops]
    assert found.dtype == np.float16
    assert found.shape[1:] == (5 * 3, 1, 197)
    matters = found >= 0.01 * found.max((2, 3), keepdims=True)
    assert found[matters].min() >= np.finfo(np.float16).tiny


def min_max(maps: np.ndarray) -> np.ndarray:
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (maps - low) / (high - low)


def test_fp16_types_are_in_the_file_and_its_ends_are_float32(half: Path):
    graph = read_onnx(half).graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    floats = [i for i in graph.initializer if i.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)]
    large = [i for i in floats if int(np.prod(i.dims)) > 1]
    assert large
    assert {i.data_type for i in large} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize(("option", "value"), [("--precision", "int4"), ("--maps", "some")])
def test_an_unknown_form_is_refused(model: Path, tmp_path: Path, option: str, value: str):
    refused = lctr("export", model, option, value, "-o", tmp_path / "model.onnx")
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert f"unknown {option} '{value}'" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_all_maps_through_the_command_line(model: Path, tmp_path: Path):
    assert lctr("export", model, "--maps", "all", "-o", tmp_path / "model.onnx").exit_code == 0
    with open_engine(tmp_path / "model.onnx") as session:
        assert session.outputs == ("logits", "maps", "attention")
        found = session.run({"image": np.zeros((2, 3, 112, 112), np.float32)})
    assert found["maps"].shape == (2, 12, 14, 14)
    assert found["attention"].shape == (2, 14, 14)
