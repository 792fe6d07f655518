"""Models that are not LCTR: where Q/DQ stands, worked out by hand; what the graph computes; what it is compiled to."""

import numpy as np
import onnx
import pytest
import torch
from foreign_models import GEMM_WEIGHTS, GEMMS, IMAGES, SIDE, HalfInside, ResNet, Vit, settled
from onnx import numpy_helper
from small_graphs import graph, in_float16

from engines.backend import BuildOptions
from engines.inspect import inspect
from engines.registry import open_engine
from engines.tensorrt_rtx import TensorRTRTXBackend
from exporters.files import write_onnx
from exporters.placement import placement_from_model
from exporters.qdq import observer_from_float, qdq_from_float
from exporters.torch_export import onnx_from_torch

BATCH_NORMS = """net (float[batch, 3, 16, 16] image) => (float[batch, 8, 16, 16] logits) {
    [conv1] a = Conv <pads = [1, 1, 1, 1]> (image, w1)
    [bn1] b = BatchNormalization (a, factor, shift, mean, variance)
    [relu1] c = Relu (b)
    [conv2] d = Conv <pads = [1, 1, 1, 1]> (c, w2)
    [bn2] e = BatchNormalization (d, factor, shift, mean, variance)
    [add] f = Add (e, c)
    [relu2] logits = Relu (f)
}"""
BATCH_NORM_WEIGHTS = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "factor": (8,), "shift": (8,), "mean": (8,)}


def from_torch(module, half):
    torch.manual_seed(0)
    module = settled(module())
    return onnx_from_torch(
        HalfInside(module) if half else module, image_size=SIDE, metadata={}, output_names=["logits"]
    )


def from_text(text, shapes, half, **values):
    model = graph(text, shapes, **values)
    return in_float16(model) if half else model


MODELS = {
    "resnet": lambda half: from_torch(ResNet, half),
    "batch norms": lambda half: from_text(
        BATCH_NORMS, BATCH_NORM_WEIGHTS, half, variance=np.random.default_rng(1).uniform(0.5, 2, 8)
    ),
    "vit": lambda half: from_torch(Vit, half),
    "gemms": lambda half: from_text(GEMMS, GEMM_WEIGHTS, half),
}
PRODUCTS = {"resnet": (6, 1), "batch norms": (2, 0), "vit": (1, 9), "gemms": (0, 3)}
"""Convolutions and linears of each, counted by hand."""


def placed(model, attention="none"):
    placement = placement_from_model(model, (), attention)
    return [site.name for site in placement.sites], {left.name: left.reason for left in placement.left}


def quantized(model, folder, attention="none"):
    """The answers of the float and of the quantized graph, both in ONNX Runtime, and the quantized file."""
    placement = placement_from_model(model, (), attention)
    images = np.random.default_rng(0).standard_normal(IMAGES).astype(np.float32)
    half = model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    feeds = {"image": images.astype(np.float16) if half else images}
    write_onnx(observer_from_float(model, placement.activations), folder / "observer.onnx")
    with open_engine(folder / "observer.onnx") as session:
        seen = {**session.run(feeds), **feeds}
    amax = {name: float(np.abs(seen[name]).max()) for name in placement.activations}
    write_onnx(qdq_from_float(model, placement, amax)[0], folder / "int8.onnx")
    with open_engine(folder / "int8.onnx") as session:
        answer = session.run(feeds)["logits"]
    return seen["logits"].astype(np.float32), answer.astype(np.float32), folder / "int8.onnx"


def signal_to_noise(expected, found):
    return 10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum())


def test_a_resnet_has_every_convolution_quantized_and_every_shortcut_added_in_float():
    sites, left = placed(MODELS["resnet"](half=False))
    assert sites == [
        *("bn1/Conv", "layer1.bn1/Conv", "layer1.bn2/Conv"),
        *("layer2.bn1/Conv", "layer2.bn2/Conv", "layer2.shortcut.1/Conv", "fc/Gemm"),
    ]
    assert {name: reason[-7:-1] for name, reason in left.items()} == {"layer1/Add": "rule 2", "layer2/Add": "rule 2"}


def test_batch_norms_that_were_not_folded_are_left_and_change_no_site():
    sites, left = placed(MODELS["batch norms"](half=False))
    assert sites == ["conv1", "conv2"]
    assert {name: reason[-7:-1] for name, reason in left.items()} == {"bn1": "rule 1", "bn2": "rule 1", "add": "rule 2"}


def test_a_folded_batch_norm_has_the_levels_of_one_that_is_not():
    """Folding multiplies an output channel, and so its scale: every int8 level stays, and so does the answer."""
    rng = np.random.default_rng(1)
    text = """g (float[b, 3, 16, 16] image) => (float[b, 8, 16, 16] z) {
        [conv] a = Conv <pads = [1, 1, 1, 1]> (image, w)
        [bn] z = BatchNormalization <epsilon = 0.0> (a, factor, shift, mean, variance)
    }"""
    folded = """g (float[b, 3, 16, 16] image) => (float[b, 8, 16, 16] z) {
        [conv] z = Conv <pads = [1, 1, 1, 1]> (image, w, shift)
    }"""
    w, shift, mean = rng.standard_normal((8, 3, 3, 3)), rng.standard_normal(8), np.zeros(8)
    # Powers of 2, so that folding is exact.
    factor, variance = 2.0 ** rng.integers(-2, 3, 8), np.ones(8)
    apart = graph(text, w=w, factor=factor, shift=shift, mean=mean, variance=variance)
    together = graph(folded, w=w * factor[:, None, None, None], shift=shift)
    images = rng.standard_normal(IMAGES).astype(np.float32)
    answers = [
        onnx.reference.ReferenceEvaluator(qdq_from_float(m, placement_from_model(m), {"image": 4.0})[0]).run(
            None, {"image": images}
        )[0]
        for m in (apart, together)
    ]
    np.testing.assert_allclose(*answers, atol=1e-4)


def test_a_plain_vit_has_its_packed_qkv_quantized_and_its_weight_kept_float():
    model = MODELS["vit"](half=False)
    sites, left = placed(model)
    blocks = [f"blocks.{i}.{m}/MatMul" for i in range(2) for m in ("attn.qkv", "attn.proj", "fc1", "fc2")]
    assert sites == ["patch_embed/Conv", *blocks, "head/Gemm"]
    assert sorted({reason[-7:-1] for reason in left.values()}) == ["rule 1", "rule 2", "rule 4"]
    placement = placement_from_model(model)
    made, _ = qdq_from_float(model, placement, dict.fromkeys(placement.activations, 4.0))
    arrays = {i.name: numpy_helper.to_array(i) for i in made.graph.initializer}
    packed = next(site for site in placement.sites if site.name == "blocks.0.attn.qkv/MatMul")
    assert arrays[packed.weight].shape == (64, 192)
    assert arrays[packed.weight].dtype == np.float32
    assert arrays[f"{packed.weight}/axis1/scale"].shape == (192,)


def test_a_plain_vit_s_attention_is_found():
    found = placement_from_model(MODELS["vit"](half=False), (), "all").attention
    assert [site.names for site in found] == [(f"blocks.{i}.attn/MatMul", f"blocks.{i}.attn/MatMul_1") for i in (0, 1)]


def test_gemms_have_their_channels_where_transb_puts_them():
    sites = {site.name: site for site in placement_from_model(MODELS["gemms"](half=False)).sites}
    assert {name: (site.axis, site.activation) for name, site in sites.items()} == {
        "transposed": (0, "flat"),
        "plain": (1, "active"),
        "scaled": (0, "active2"),
    }


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_quantized_model_is_near_the_float_one(name, half, tmp_path):
    expected, found, _ = quantized(MODELS[name](half), tmp_path)
    assert signal_to_noise(expected, found) >= 30


def test_the_vit_with_quantized_attention_is_near_the_float_one(tmp_path):
    expected, found, _ = quantized(MODELS["vit"](False), tmp_path, "all")
    assert signal_to_noise(expected, found) >= 30


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_tensorrt_rtx_compiles_every_product_to_int8(name, half, tmp_path):
    _, _, path = quantized(MODELS[name](half), tmp_path)
    found = inspect(TensorRTRTXBackend().build(path, tmp_path / "int8.engine", BuildOptions()).path)
    convolutions, linears = PRODUCTS[name]
    expected = {"convolution": {"int8": convolutions}, "linear": {"int8": linears}}
    assert {kind: types for kind, types in found.counts.items() if kind != "attention"} == {
        kind: types for kind, types in expected.items() if types["int8"]
    }
    assert found.fused_attention == (2 if name == "vit" and half else 0)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
def test_tensorrt_rtx_fuses_attention_that_is_quantized_whole(half, tmp_path):
    _, _, path = quantized(MODELS["vit"](half), tmp_path, "all")
    found = inspect(TensorRTRTXBackend().build(path, tmp_path / "int8.engine", BuildOptions()).path)
    assert found.counts == {"attention": {"int8": 4}, "convolution": {"int8": 1}, "linear": {"int8": 9}}
    assert found.fused_attention == 2
    assert found.losses == ()
