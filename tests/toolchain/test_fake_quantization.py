"""The arithmetic of a student, with numbers worked out by hand and against torch's own operators."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from exporters.scales import INT8, Levels, levels_of_bits
from toolchain.errors import ModelError
from toolchain.finetuning.layers import Phase, QuantizedLayer
from toolchain.finetuning.loss import distillation
from toolchain.finetuning.quantizers import ActivationQuantizer, fake_quantize

FOUR = Levels(-8, 7)


def test_levels_are_counted_from_the_bits() -> None:
    assert levels_of_bits(4, signed=True) == FOUR
    assert levels_of_bits(4, signed=False) == Levels(0, 15)
    assert levels_of_bits(8, signed=True) == levels_of_bits(8, signed=False) == INT8


def test_values_go_to_their_levels_half_to_even_and_gradients_straight_through() -> None:
    # At scale 0.5: ratios -9, -8.4, -0.5, 0.5, 1.5, 7.4, 7.6 -> levels -8 (clipped), -8, 0, 0, 2, 7, 7 (clipped).
    values = torch.tensor([[-4.5, -4.2, -0.25, 0.25, 0.75, 3.7, 3.8]], requires_grad=True)
    result = fake_quantize(values, torch.tensor(0.5), FOUR)
    assert result.tolist() == [[-4.0, -4.0, 0.0, 0.0, 1.0, 3.5, 3.5]]
    result.backward(torch.arange(1.0, 8.0)[None])
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]]


def test_a_learned_scale_gets_the_gradient_of_lsq() -> None:
    # Two images of two values at scale 0.5, levels -8..7: ratios 0.6, -20, 2.5, 9.
    values = torch.tensor([[0.3, -10.0], [1.25, 4.5]])
    scale = torch.tensor(0.5, requires_grad=True)
    fake_quantize(values, scale, FOUR).sum().backward()
    # Within: round(v) - v, so 1 - 0.6 and 2 - 2.5; beyond: the end, -8 and 7. Two values an image: 1 / sqrt(2 x 7).
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx((0.4 - 8 - 0.5 + 7) / math.sqrt(14))


@given(st.integers(0, 1000), st.sampled_from([INT8, FOUR, Levels(0, 15)]))
def test_it_agrees_with_torch_s_operator_but_next_to_the_middle_between_levels(seed: int, levels: Levels) -> None:
    drawn = np.random.default_rng(seed)
    values = torch.from_numpy(drawn.standard_normal((2, 50), np.float32)).requires_grad_()
    scale = torch.tensor([float(drawn.uniform(0.01, 0.2))], requires_grad=True)
    with torch.no_grad():
        ratio = values / scale
        clear = (ratio - ratio.floor() - 0.5).abs() > 1e-3
    ours = (fake_quantize(values, scale, levels)[clear], values, scale)
    zero = torch.zeros(1)
    factor = 1 / math.sqrt(50 * levels.largest)
    learnable = torch._fake_quantize_learnable_per_tensor_affine
    theirs = learnable(values, scale, zero, levels.least, levels.largest, factor)[clear]
    torch.testing.assert_close(ours[0], theirs, rtol=1e-6, atol=0)
    weights = torch.from_numpy(drawn.standard_normal(int(clear.sum()), np.float32))
    (of_values, of_scale), (expected_values, expected_scale) = (
        torch.autograd.grad((result * weights).sum(), (values, scale)) for result in (ours[0], theirs)
    )
    torch.testing.assert_close(of_values, expected_values, rtol=0, atol=0)
    torch.testing.assert_close(of_scale, expected_scale, rtol=1e-3, atol=1e-3)


def test_torch_s_operator_gives_another_level_than_onnx_where_ours_does_not() -> None:
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    names = [helper.make_tensor_value_info(n, t, None) for n, t in (("x", 1), ("s", 1), ("z", TensorProto.INT8))]
    out = helper.make_tensor_value_info("q", TensorProto.INT8, None)
    onnx = ReferenceEvaluator(helper.make_model(helper.make_graph([node], "g", names, [out])))
    drawn = np.random.default_rng(0)
    # Middles between two levels, as near as float32 gets.
    scale = np.float32(drawn.uniform(0.001, 0.1))
    values = ((drawn.integers(-127, 127, 4000) + 0.5) * scale).astype(np.float32)
    expected = onnx.run(None, {"x": values, "s": np.asarray(scale), "z": np.asarray(np.int8(0))})[0]
    ours = fake_quantize(torch.from_numpy(values)[None], torch.tensor(scale), INT8)[0] / float(scale)
    theirs = torch.fake_quantize_per_tensor_affine(torch.from_numpy(values), float(scale), 0, -128, 127) / float(scale)
    assert np.array_equal(ours.round().numpy(), expected)
    assert not np.array_equal(theirs.round().numpy(), expected)


def test_a_range_is_the_moving_average_of_what_batches_reach() -> None:
    quantizer = ActivationQuantizer("relu", 4)
    for largest in (2.0, 4.0, 0.0):
        quantizer.observe(torch.tensor([[0.0, largest]]), 0.9)
    # 2; 0.9 x 2 + 0.1 x 4 = 2.2; 0.9 x 2.2 = 1.98. No sign was seen: 15 levels above 0.
    assert float(quantizer.amax) == pytest.approx(1.98)
    assert float(quantizer.used_scale) == np.float32(float(quantizer.amax) / 15)
    quantizer.observe(torch.tensor([[-1.0, 1.0]]), 0.9)
    assert quantizer.levels == FOUR
    assert float(quantizer.used_scale) == np.float32(float(quantizer.amax) / 7)


def test_a_known_range_is_not_observed() -> None:
    quantizer = ActivationQuantizer("image", 8, known=2.54)
    quantizer.observe(torch.full((1, 2), 100.0), 0.9)
    assert float(quantizer.used_scale) == np.float32(0.02)


def test_what_no_range_covers_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Tensor 'relu' holds NaN or infinity"):
        ActivationQuantizer("relu", 4).observe(torch.tensor([[math.nan]]), 0.9)


def test_the_error_of_a_range_is_measured() -> None:
    quantizer = ActivationQuantizer("relu", 4)
    quantizer.observe(torch.tensor([[0.0, 15.0]]), 0.9)
    quantizer.measure(torch.tensor([[3.0, 4.4]]))
    assert quantizer.relative_error == pytest.approx(0.4**2 / (3**2 + 4.4**2), rel=1e-5)


def quantized(layer: nn.Linear | nn.Conv2d, norm: nn.BatchNorm1d | nn.BatchNorm2d | None = None) -> QuantizedLayer:
    activation = ActivationQuantizer("x", 8, known=127.0)
    return QuantizedLayer("w", layer, norm, activation, first=True, levels=FOUR, bounded=True)


def test_a_linear_by_hand() -> None:
    linear = nn.Linear(2, 2)
    # Scales 1 and 2 (7 and 14 over 7): levels (7, 1), (1, -7) -> weights (7, 1), (2, -14).
    linear.weight.data = torch.tensor([[7.0, 1.4], [2.2, -14.0]])
    linear.bias.data = torch.tensor([0.25, 0.0])
    layer = quantized(linear)
    assert layer.weight.tolist() == [[7.0, 1.0], [2.0, -14.0]]
    # Inputs to whole numbers: 2.4 -> 2, 3.
    assert layer(torch.tensor([[2.4, 3.0]])).tolist() == [[17.25, -38.0]]


def test_equalization_s_factors_move_from_the_input_to_the_weight() -> None:
    linear = nn.Linear(2, 1, bias=False)
    linear.weight.data = torch.tensor([[1.75, 0.5]])
    activation = ActivationQuantizer("x", 8, known=127.0)
    layer = QuantizedLayer("w", linear, None, activation, first=True, levels=FOUR, bounded=False, exponents=(2, -1))
    # Weight 1.75 x 4 = 7 and 0.5 / 2 = 0.25 at scale 1 -> 7, 0; input 12 / 4 = 3 and 1 x 2 = 2.
    assert layer.weight.tolist() == [[7.0, 0.0]]
    assert layer(torch.tensor([[12.0, 1.0]])).tolist() == [[21.0]]


@pytest.mark.parametrize(
    ("layer", "norm", "fuse"),
    [
        (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), fuse_conv_bn_eval),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), fuse_conv_bn_eval),
        (nn.Linear(3, 4), nn.BatchNorm1d(4), fuse_linear_bn_eval),
    ],
)
def test_a_batch_norm_is_folded_as_torch_folds_it(layer, norm, fuse) -> None:
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    if norm.affine:
        norm.weight.data, norm.bias.data = torch.randn(4), torch.randn(4)
    expected, found = fuse(layer.eval(), norm.eval()), quantized(layer, norm).folded()
    torch.testing.assert_close(found.weight, expected.weight)
    torch.testing.assert_close(found.bias, expected.bias)


def test_gradients_reach_a_folded_batch_norm_s_factor_and_shift() -> None:
    layer, norm = nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, eps=0.0).eval()
    layer.weight.data.fill_(3.0)
    norm.running_mean, norm.running_var = torch.tensor([1.0]), torch.tensor([4.0])
    quantized(layer, norm)(torch.tensor([[10.0]])).sum().backward()
    # y = (3 x - 1) / 2 g + b at x = 10: dy/dg = 29 / 2, dy/db = 1, dy/dw = x g / 2 = 5.
    assert [float(p.grad) for p in (norm.weight, norm.bias, layer.weight)] == pytest.approx([14.5, 1.0, 5.0])


def test_only_the_first_reader_of_a_tensor_observes_it() -> None:
    activation = ActivationQuantizer("x", 8)
    layers = [
        QuantizedLayer("w", nn.Linear(1, 1), None, activation, first=first, levels=INT8, bounded=False)
        for first in (True, False)
    ]
    for batch in (1.0, 2.0):
        for layer in layers:
            layer.phase, layer.decay = Phase.OBSERVE, 0.5
            layer(torch.tensor([[batch]]))
    assert float(activation.amax) == 1.5


def test_the_loss_by_hand() -> None:
    # At T = 2 the student answers (1/2, 1/2), the teacher (3/4, 1/4): logits 0, 0 and 2 ln 3, 0.
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    found = distillation(student, teacher, torch.tensor([1]), temperature=2.0, weight=5.0)
    divergence = (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 2
    assert float(found.cross_entropy) == pytest.approx(math.log(2))
    assert float(found.divergence) == pytest.approx(divergence)
    assert float(found.total) == pytest.approx(math.log(2) + 5 * 4 * divergence)
