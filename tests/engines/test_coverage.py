"""What an ONNX file asks for and whether it was got, counted by hand; and the gate of every backend."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from engines.backend import BuildOptions
from engines.build import build
from engines.coverage import coverage_of, require
from engines.inspection import COMPILED, Inspection, Loss, ProductReport
from toolchain.errors import BackendError, UsageError

LOSS = Loss("it broke", "mend it", "nothing may break")


def report(name: str, asked: str, got: str, softmax: str = "", *, fused: bool = False) -> ProductReport:
    kind = "attention" if softmax else "linear"
    loss = LOSS if asked != got or (softmax and not fused) else None
    return ProductReport(name, "MatMul", kind, got, "kernel", loss, asked, softmax, fused)


def inspection(*products: ProductReport) -> Inspection:
    return Inspection("tensorrt-rtx", COMPILED, products, len(products), 0)


@pytest.mark.parametrize(
    ("asked", "got", "met"),
    [
        ("int8", "int8", True),
        ("int8", "fp16", False),
        ("int8", "unknown", False),
        ("fp16", "fp16", True),
        ("fp16", "int8", True),
        ("fp16", "fp32", False),
        ("bf16", "fp32", False),
    ],
)
def test_a_product_is_met_by_a_type_that_is_as_narrow(asked: str, got: str, met: bool) -> None:
    coverage = coverage_of(inspection(report("fc", asked, got)))
    assert [r.met for r in coverage.requests] == [met]
    assert coverage.share == met


def test_what_is_asked_for_in_fp32_or_not_known_asks_for_nothing() -> None:
    coverage = coverage_of(inspection(report("a", "fp32", "fp32"), report("b", "unknown", "fp32")))
    assert (coverage.requests, coverage.share, str(coverage)) == ((), 1.0, "nothing was asked for")


def test_attention_asks_for_one_kernel_beside_its_types() -> None:
    pair = [report(name, "fp16", "fp16", "p") for name in ("qk", "pv")]
    coverage = coverage_of(inspection(*pair, report("fc", "int8", "int8")))
    assert [(r.name, r.met) for r in coverage.requests] == [
        ("qk", True),
        ("pv", True),
        ("fc", True),
        ("qk and pv", False),
    ]
    assert coverage.share == 3 / 4
    assert str(coverage) == "3 of 4 requests met (2 of 2 fp16, 1 of 1 int8, 0 of 1 one fused kernel)"
    fused = [report(name, "fp16", "fp16", "p", fused=True) for name in ("qk", "pv")]
    assert coverage_of(inspection(*fused)).share == 1


def test_attention_in_fp32_asks_only_where_every_attention_does() -> None:
    found = inspection(*(report(name, "fp32", "fp32", "p") for name in ("qk", "pv")))
    assert coverage_of(found).requests == ()
    assert coverage_of(found, every_attention=True).share == 0


def test_the_bound_itself_holds_and_less_is_refused_with_reason_and_fix() -> None:
    found = inspection(report("a", "int8", "int8"), report("b", "int8", "fp16"))
    require(found, "m.engine", 0.5)
    with pytest.raises(BackendError) as refused:
        require(found, "m.engine", 0.51)
    assert str(refused.value).splitlines() == [
        "m.engine is not what its ONNX file asks for: 1 of 2 requests met (1 of 2 int8), "
        "0.500 of them where --min-coverage is 0.51: follow the list, or accept less.",
        "  b: int8 asked for, fp16 compiled: it broke; mend it",
    ]


def test_onnx_runtime_is_held_to_what_runs_here_only_where_that_is_asked(
    write_transformer: Callable[..., Path], tmp_path: Path
) -> None:
    model, engine = write_transformer(), tmp_path / "a.engine"
    build(model, "onnxruntime", engine, BuildOptions())
    assert engine.exists()
    with pytest.raises(BackendError, match=r"patch: int8 asked for, fp32 compiled: .*needs a Q on its output"):
        build(model, "onnxruntime", tmp_path / "b.engine", BuildOptions(), min_coverage=1)
    assert not (tmp_path / "b.engine").exists()


def test_a_backend_that_lists_nothing_cannot_promise_anything(
    write_transformer: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match="lists no kernels"):
        build(write_transformer(), "memory", tmp_path / "a.engine", BuildOptions(), min_coverage=0.5)
    assert not (tmp_path / "a.engine").exists()


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_a_coverage_that_is_no_share_is_refused(
    write_transformer: Callable[..., Path], tmp_path: Path, share: float
) -> None:
    with pytest.raises(UsageError, match="give a number from 0 to 1"):
        build(write_transformer(), "memory", tmp_path / "a.engine", BuildOptions(), min_coverage=share)


def test_the_command_refuses_accepts_less_and_shows_what_was_lost(write_transformer: Callable[..., Path]) -> None:
    model = write_transformer(precision="fp16", floats=("fc2",), attention_map=True)
    command, run = ["build", str(model), "--backend", "tensorrt-rtx"], CliRunner().invoke
    refused = run(main, command)
    assert refused.exit_code == 1
    assert "\n  qk and pv: one fused kernel asked for, separate kernels compiled: not fused: 2 nodes" in refused.stderr
    assert not model.with_suffix(".engine").exists()
    accepted = run(main, [*command, "--min-coverage", "0.9"])
    assert accepted.exit_code == 0, accepted.output
    shown = run(main, ["inspect", str(model.with_suffix(".engine"))]).stdout
    for words in (
        "attention is fused only where nobody else reads its softmax",
        "put Q/DQ on both operands",
        "INT8: 7 of 8 possible, 7 asked for",
        "attention fused: 0 of 1 possible",
        "weight bytes: ",
        "not known: activation bytes: ",
    ):
        assert words in shown
    totals = json.loads(run(main, ["inspect", str(model.with_suffix(".engine")), "--json"]).stdout)["totals"]
    assert (totals["int8"], totals["int8_possible"], totals["activation_bytes"]) == (7, 8, None)
