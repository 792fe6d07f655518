"""The cache, read back the way TensorRT's users read one."""

import pytest
from small_graphs import attention, conv_net, linear_stack

from exporters.calibration_cache import cache_from_amax, tensors_of_implicit, version_number
from exporters.placement import placement_from_model
from toolchain.errors import ModelError, UsageError


def value_of(digits):
    """A float32 from its eight hexadecimal digits, by IEEE 754: sign, 8 bits of exponent, 23 of fraction."""
    bits = int(digits, 16)
    exponent, fraction = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    assert 0 < exponent < 255
    return (-1) ** (bits >> 31) * (1 + fraction / 2**23) * 2.0 ** (exponent - 127)


def parsed(text):
    head, *lines = text.splitlines()
    assert text.endswith("\n")
    return head, {name: value_of(digits) for name, digits in (line.rsplit(": ", 1) for line in lines)}


def test_scales_read_back():
    amax = {"image": 127.0, "/blocks.0/norm:0": 2.117904, "a: b": 1e-3}
    head, scales = parsed(cache_from_amax(amax, 101_300))
    assert head == "TRT-101300-EntropyCalibration2"
    assert list(scales) == list(amax)
    assert scales == pytest.approx({name: value / 127 for name, value in amax.items()}, rel=1e-7)


def test_known_digits():
    # 1.0 is 3f800000; the sigmoid of NVIDIA's own caches, amax 1, is 1 / 127.
    assert (
        cache_from_amax({"t": 127.0, "s": 1.0}, 100_300) == "TRT-100300-EntropyCalibration2\nt: 3f800000\ns: 3c010204\n"
    )


def test_a_tensor_of_zeros_has_a_scale():
    _, scales = parsed(cache_from_amax({"dead": 0.0}, 100_001))
    assert 0 < scales["dead"] < 1e-12


@pytest.mark.parametrize(("version", "number"), [("10.13.0", 101300), ("10.14.1.48", 101401), ("10.0.1", 100001)])
def test_the_version_is_tensorrt_s_integer(version, number):
    assert version_number(version) == number


@pytest.mark.parametrize("version", ["11.0.0", "8.6.1", "10", "10.13", "10.13.0-rc", "latest"])
def test_another_version_is_refused(version):
    with pytest.raises(UsageError, match=f"TensorRT {version} reads no"):
        version_number(version)


def test_a_range_that_is_none_is_refused():
    with pytest.raises(ModelError, match="'t' has the range nan"):
        cache_from_amax({"t": float("nan")}, 101_300)


def test_products_have_scales_on_both_sides():
    def tensors(model, *keep):
        return tensors_of_implicit(model, placement_from_model(model, keep))

    # The bias of the first product is an Add of its own, that of the second is inside.
    assert tensors(linear_stack()) == ("image", "product", "hidden", "active", "logits")
    # The residual add has no constant operand, so its sum stays without a scale.
    assert tensors(conv_net()) == ("image", "first", "active", "second")
    assert tensors(conv_net(), "branch") == ("image", "first")


def test_attention_and_normalization_have_none():
    model = attention()
    named = tensors_of_implicit(model, placement_from_model(model, ["*_routing_fn_two*"]))
    assert named == ("normed", "packed", "qkv", "values", "out", "out_biased")
