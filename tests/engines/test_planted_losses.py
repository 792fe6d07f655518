"""Each known way to lose INT8 or the fused attention, planted in a model that TensorRT-RTX compiles for real."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.backend import BatchProfile, BuildOptions
from engines.build import build
from engines.inspect import inspect
from engines.inspection import Inspection
from engines.losses import ALL_OR_NONE, FLOAT_WEIGHT, NOT_FP32, ONE_READER
from toolchain.artifacts import sidecar_of
from toolchain.errors import BackendError

BACKEND = "tensorrt-rtx"
Writer = Callable[..., Path]


def compiled(model: Path, options: BuildOptions | None = None, **held: Any) -> Inspection:
    return inspect(build(model, BACKEND, model.with_suffix(".engine"), options or BuildOptions(), **held)[0].path)


@pytest.mark.parametrize(
    ("plant", "lost", "rule", "fix"),
    [
        (
            {"packed": True, "stored": ("qkv",)},
            {"qkv": "the builder multiplied in fp16 although both operands have Q/DQ; the weight is stored as INT8"},
            FLOAT_WEIGHT,
            "store the weight in floating point and add Q before the DQ",
        ),
        (
            {"attention_q_dq": ("q", "k")},
            dict.fromkeys(("qk", "pv"), "not fused: Q/DQ on some of q, k, v and softmax only"),
            ALL_OR_NONE,
            "put Q/DQ on all four or on none",
        ),
        (
            {"attention_q_dq": ("softmax", "v")},
            dict.fromkeys(("qk", "pv"), "not fused: Q/DQ on some of q, k, v and softmax only"),
            ALL_OR_NONE,
            "put Q/DQ on all four or on none",
        ),
        (
            {"attention_map": True},
            dict.fromkeys(("qk", "pv"), "not fused: 2 nodes read the softmax"),
            ONE_READER,
            "compute the second use outside the attention",
        ),
        (
            {"precision": "fp32"},
            dict.fromkeys(("qk", "pv"), "not fused: the product is done in fp32"),
            NOT_FP32,
            "convert what is float in the ONNX file to FP16",
        ),
    ],
    ids=["packed qkv stored as INT8", "only QK", "only PV", "second reader of the softmax", "FP32 base"],
)
def test_a_planted_loss_is_named_with_rule_and_fix_and_refused(
    write_transformer: Writer, plant: dict[str, Any], lost: dict[str, str], rule: str, fix: str
) -> None:
    model = write_transformer(**{"precision": "fp16", **plant})
    found = compiled(model, min_coverage=0)
    assert {p.name: p.loss.reason for p in found.losses if p.loss} == lost
    assert {(p.loss.rule, p.loss.fix) for p in found.losses if p.loss} == {(rule, fix)}
    assert found.totals["attention_fused"] == (1 if "qkv" in lost else 0)
    # In FP32 the file asks for no fused kernel: there is none.
    with pytest.raises(BackendError) as refused:
        compiled(model, every_attention="precision" in plant)
    summary, *nodes = str(refused.value).splitlines()
    assert summary.startswith(f"{model.with_suffix('.engine')} is not what its ONNX file asks for: ")
    (node,) = nodes
    assert all(name in node for name in lost)
    assert next(iter(lost.values())) in node
    assert fix in node


@pytest.mark.parametrize(
    ("healthy", "attention"),
    [
        ({"packed": True}, "fp16"),
        ({"attention_q_dq": ("q", "k", "v", "softmax")}, "int8"),
        ({"attention_q_dq": ("q", "k", "v", "softmax"), "precision": "fp32"}, "int8"),
    ],
    ids=["packed qkv with Q and DQ", "all four of the attention", "all four on an FP32 base"],
)
def test_the_mended_model_loses_nothing_and_is_built(
    write_transformer: Writer, healthy: dict[str, Any], attention: str
) -> None:
    found = compiled(write_transformer(**{"precision": "fp16", **healthy}))
    assert found.losses == ()
    assert found.counts["attention"] == {attention: 2}
    totals = {key: found.totals[key] for key in ("int8", "int8_asked", "attention_fused", "attention_possible")}
    products = 6 if "packed" in healthy else 10
    assert totals == {"int8": products, "int8_asked": products, "attention_fused": 1, "attention_possible": 1}


def test_an_fp32_model_asks_for_no_fused_attention(write_transformer: Writer) -> None:
    found = compiled(write_transformer(precision="fp32"))
    assert found.totals["attention_possible"] == 1
    assert found.totals["attention_fused"] == 0


def test_a_refused_build_leaves_no_engine_and_spares_the_one_that_was_there(write_transformer: Writer) -> None:
    model = write_transformer(precision="fp16", packed=True, stored=("qkv",))
    engine = model.with_suffix(".engine")
    with pytest.raises(BackendError, match=r"\n  qkv: int8 asked for, fp16 compiled: "):
        compiled(model)
    assert list(model.parent.iterdir()) == [model]
    engine.write_bytes(b"an earlier engine")
    sidecar_of(engine).write_text("and its sidecar")
    with pytest.raises(BackendError, match="8 of 9 requests met"):
        compiled(model)
    assert engine.read_bytes() == b"an earlier engine"
    assert sidecar_of(engine).read_text() == "and its sidecar"


def test_bytes_of_an_engine_for_one_batch_size_and_for_several(write_transformer: Writer) -> None:
    model = write_transformer(precision="fp16")
    several = compiled(model)
    assert several.activation_bytes is None
    assert "dynamic size" in several.untold[0]
    # Every weight stands there once, with a fourth channel for the image and a sixth class.
    linears = 3 * 32 * 32 + 32 * 32 + 32 * 128 + 128 * 32 + 32 * 6
    assert several.weight_bytes is not None
    assert several.weight_bytes["int8"] == 4 * 8 * 8 * 32 + linears
    one = compiled(model, BuildOptions(batch=BatchProfile(2, 2, 2)))
    assert one.untold == ()
    # At least the image as INT8 with four channels, q, k and v, and fc1's result, for two images each.
    assert one.activation_bytes is not None
    assert one.activation_bytes > 2 * (4 * 32 * 32 + 2 * 16 * 96 + 2 * 16 * 128)
