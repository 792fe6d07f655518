# ruff: noqa: RUF001 (the page is set in real minus signs, dashes and multiplication signs)
"""Findings made by hand: what the verdict says of them, and what stands in the file."""

import base64
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from engines.inspection import COMPILED, RAN, Inspection, Loss, ProductReport
from toolchain.artifacts import Artifact
from toolchain.card import ModelCard
from toolchain.errors import ArtifactError
from toolchain.evaluation import Evaluation, OutputError
from toolchain.findings import Arm, Example, Findings, Stage
from toolchain.overlay import png_bytes
from toolchain.preprocessing import Preprocessing
from toolchain.report import latency_rows, report_from_findings, verdict

NASTY = "<b>&"
NO_GPU = "this machine has no GPU."


def arm(name, gt_known=96.0, top1=90.0, error=None):
    calibration = "" if name == "FP32" else "128 synthetic images"
    return Arm(name, calibration, Evaluation(2400, 93.5, 99.25, gt_known, top1, 95.75, 3, 0.37), error)


def session(median, ratio, problems=()):
    timings = dict.fromkeys(("median", "p90", "p95", "p99", "mean"), median)
    return {
        "timings": {**timings, "cv": 0.0213, "n": 200, "unit": "ms", "clock": "perf_counter, host to host"},
        "ratio": dict(zip(("value", "low", "high"), ratio, strict=True)),
        "images_per_second": 1000 / median,
        "difference": {},
        "problems": problems,
    }


def latency(*ratios, problems=()):
    """INT8 against FP32 at batch 1, 8, ..."""
    rows = {
        str(8**k): {"FP32": session(10, (1, 1, 1)), "INT8": session(10 * ratio[0], ratio, problems)}
        for k, ratio in enumerate(ratios)
    }
    return {"baseline": "FP32", "settings": {"warmup": 10, "rounds": 7, "iterations": 20}, "batches": rows}


FASTER, SLOWER, EVEN = (0.8, 0.7, 0.9), (1.25, 1.2, 1.3), (1.01, 0.9, 1.1)
COMPILED_ENGINE = Inspection(
    "tensorrt-rtx",
    COMPILED,
    (
        ProductReport("/patch/Conv", "Conv", "convolution", "int8", "conv_kernel"),
        ProductReport("/fc1/MatMul", "MatMul", "linear", "int8", "fc_kernel"),
        ProductReport(
            "/fc2/MatMul", "MatMul", "linear", "fp16", "", Loss("the input has no Q/DQ", "put it there", "both need it")
        ),
        ProductReport("/qk/MatMul", "MatMul", "attention", "fp16", "_gemm_mha", softmax="p", fused=True),
    ),
    layers=41,
    fused_attention=1,
).as_dict()
RAN_MODEL = Inspection(
    "onnxruntime", RAN, (ProductReport("/fc1/MatMul", "MatMul", "linear", "int8", "MatMulIntegerToFloat"),), 9, 0
).as_dict()


@pytest.fixture
def findings(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    map_ = np.arange(16, dtype=np.float32).reshape(4, 4)
    synthetic = tmp_path / "synthetic"
    for name in ("preview.png", "losses.png"):
        (tmp_path / name).write_bytes(png_bytes(image))
    box = (2.0, 2.0, 12.0, 12.0)
    machine, versions = {"cpu": "A CPU", "gpu": "none"}, {"lctr": "0.1.0"}
    model = Artifact(tmp_path / "model.safetensors", "model", "a" * 64, 3 << 20, {}, {}, {}, "", versions, machine)
    inputs = {"model": {"kind": "model", "sha256": "a" * 64}}
    images = replace(model, path=synthetic, kind="synthetic", sha256="b" * 64, inputs=inputs)
    return Findings(
        card=ModelCard("lctr-nano", (NASTY, "other"), Preprocessing(16, 16, (0, 0, 0), (1, 1, 1)), 0.37),
        data="shapes",
        arms=(arm("FP32"), arm("INT8, FDDA", 95.9, 90.0, OutputError(31.25, float("inf"), 97.5, 99.0))),
        latency=latency(FASTER),
        inspections={"model.int8.onnx": RAN_MODEL, "model.engine": COMPILED_ENGINE},
        not_run=NO_GPU,
        examples=(Example("one.png", image, (NASTY, box), (NASTY, box, map_), ("other", (0, 0, 3, 3), map_)),),
        synthetic=synthetic,
        preview=tmp_path / "preview.png",
        losses=tmp_path / "losses.png",
        artifacts=(model, images),
        stages=(Stage("load", 0.4, True), Stage("synthesize", 12.5, False)),
    )


class Page(HTMLParser):
    """Text, attributes and balance of a page."""

    CELLS = ("td", "th", "dt", "dd", "br", "p")
    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, html):
        super().__init__()
        self.text, self.attributes, self.open, self.tags = "", [], [], []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.text += " " if tag in self.CELLS else ""
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tmp_path):
    def render(findings):
        report_from_findings(findings, tmp_path / "report.html")
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return render


def test_verdict_of_an_int8_that_is_worth_it(findings):
    found = verdict(findings)
    assert found.holds
    assert found.headline == "INT8 keeps the accuracy and runs faster here"
    assert found.accuracy.text == (
        "INT8, calibrated on 128 synthetic images, loses 0.10 points of GT-Known Loc and loses none of Top-1 Loc "
        "against FP32 on 2,400 held-out images: within the bound of 0.5."
    )
    assert found.speed.text == (
        "INT8 runs 1.25× as fast as FP32 at batch 1 (1.11 to 1.43 at 95 %), in ONNX Runtime on this machine's CPU."
    )
    (compiled,) = found.compiled
    assert compiled.holds is None
    assert compiled.text == (
        "TensorRT-RTX engine: compiled ahead of time, 2 of 3 linears and convolutions INT8, 1 of 1 attention fused; "
        "not run: this machine has no GPU."
    )


@pytest.mark.parametrize(
    ("gt_known", "top1", "holds"),
    [(95.5, 90.0, True), (95.49, 90.0, False), (96.0, 89.4, False), (97.0, 91.0, True), (float("nan"), 90.0, False)],
)
def test_accuracy_holds_when_both_metrics_stay_within_the_bound(findings, gt_known, top1, holds):
    claim = verdict(replace(findings, arms=(arm("FP32"), arm("INT8, FDDA", gt_known, top1)))).accuracy
    assert claim.holds is holds
    words = "not shown to be within" if gt_known != gt_known else "within" if holds else "over"
    assert f": {words} the bound of 0.5" in claim.text


def test_a_gain_is_called_a_gain(findings):
    text = verdict(replace(findings, arms=(arm("FP32"), arm("INT8, FDDA", 96.25, 88.8)))).accuracy.text
    assert "gains 0.25 points of GT-Known Loc and loses 1.20 points of Top-1 Loc" in text


@pytest.mark.parametrize(
    ("ratios", "holds", "words"),
    [
        ([SLOWER], False, "INT8 is slower than FP32 at batch 1: 0.80× its speed"),
        ([EVEN], False, "INT8 is as fast as FP32 at batch 1"),
        ([(0.8, 0.7, 1.1)], True, "1.25× as fast as FP32 at batch 1 (0.91 to 1.43 at 95 %, so not beyond noise)"),
        ([(1.25, 0.9, 1.4)], False, "at batch 1: 0.80× its speed (0.71 to 1.11 at 95 %, so not beyond noise)"),
        ([FASTER, SLOWER], False, "1.25× as fast as FP32 at batch 1 (1.11 to 1.43 at 95 %), and is slower"),
        ([FASTER, FASTER], True, "at batch 8"),
    ],
)
def test_speed_is_told_as_measured(findings, ratios, holds, words):
    found = verdict(replace(findings, latency=latency(*ratios)))
    assert found.speed.holds is holds
    assert found.holds is holds
    assert words in found.speed.text


def test_headlines(findings):
    bad = (arm("FP32"), arm("INT8, FDDA", 90.0))
    assert verdict(replace(findings, latency=latency(SLOWER))).headline == (
        "INT8 keeps the accuracy, but does not run faster here"
    )
    assert verdict(replace(findings, arms=bad)).headline == "INT8 loses too much accuracy, but runs faster here"
    assert verdict(replace(findings, latency={})).headline == "INT8 keeps the accuracy; its speed was not measured"
    assert "some batch sizes only" in verdict(replace(findings, latency=latency(FASTER, SLOWER))).headline


def test_a_fast_engine_with_broken_outputs_does_not_hold(findings):
    claim = verdict(replace(findings, latency=latency(FASTER, problems=("map is 0 everywhere",)))).speed
    assert claim.holds is False
    assert "map is 0 everywhere" in claim.text


def test_what_was_not_measured_neither_holds_nor_fails(findings):
    found = verdict(replace(findings, arms=findings.arms[:1], latency={}))
    assert (found.accuracy.holds, found.speed.holds, found.holds) == (None, None, False)


def test_engines_are_named_where_there_are_several(findings):
    both = {"a.engine": COMPILED_ENGINE, "b.engine": COMPILED_ENGINE}
    texts = [c.text for c in verdict(replace(findings, inspections=both, not_run="")).compiled]
    assert texts[1].startswith("TensorRT-RTX engine b.engine: compiled ahead of time, 2 of 3 linears")


def test_latency_rows_are_in_order_of_batch_size():
    record = latency(FASTER, FASTER)
    record["batches"] = dict(reversed(record["batches"].items()))
    assert [(r.batch, r.name, r.baseline) for r in latency_rows(record)] == [
        (1, "FP32", True),
        (1, "INT8", False),
        (8, "FP32", True),
        (8, "INT8", False),
    ]


def test_the_report_says_everything(findings, page):
    shown = page(findings)
    for words in (
        verdict(findings).accuracy.text,
        verdict(findings).speed.text,
        "Protocol lctr, τ = 0.37",
        "93.50 99.25 96.00",
        "95.90 −0.10 90.00 0.00 31.2 ∞ 97.5 3",
        "INT8 1 8.00 8.00 8.00 8.00 2.1 125.0 1.25× 1.11 to 1.43 perf_counter, host to host",
        "compiled ahead of time, not run: this machine has no GPU",
        "No real image was read to make them",
        "the input has no Q/DQ → put it there (both need it)",
        "IoU 0.01",
        "model.safetensors model aaaaaaaaaaaa 3.0 MiB",
        "0.4 s · ↺ reused",
        "12.9 s",
        "A CPU",
    ):
        assert words in shown.text
    assert ("code", "title", "a" * 64) in shown.attributes


def test_missing_figures_are_dashes_with_a_reason(findings, page):
    shown = page(findings)
    assert ("span", "title", "this is the reference") in shown.attributes
    assert ("span", "title", "this is the baseline") in shown.attributes
    assert ("span", "title", "no kernel was found") in shown.attributes
    assert "FP32 93.50 99.25 96.00 – this is the reference 90.00 – this is the reference" in shown.text


def test_a_report_of_almost_nothing(findings, page, tmp_path):
    nothing = replace(findings, arms=(), latency={}, inspections={}, examples=(), artifacts=(), stages=(), not_run="")
    shown = page(replace(nothing, preview=tmp_path / "gone.png", losses=tmp_path / "gone.png"))
    for words in (
        "INT8's accuracy was not measured",
        "– Latency was not measured",
        "– No preview: gone.png is missing",
    ):
        assert words in shown.text


def test_ranges_say_their_method_and_stand_beside_other_calibrations(findings, page):
    def quantized(parameters, amax):
        found = {"amax": amax, "method": "mse", "error": 1e-4, "minimum": 0.0, "maximum": 9.0}
        return replace(
            findings.artifacts[0], kind="onnx-int8", parameters=parameters, metadata={"ranges": {NASTY: found}}
        )

    models = (
        quantized({"limit": None}, 3.0),
        quantized({"images": "noise"}, 6.0),
        quantized({"images": "training"}, 2.0),
    )
    told = page(replace(findings, artifacts=tuple(models))).text
    assert "Ranges of 1 tensors: 1 by mse." in told
    assert "to real images to noise" in told.replace("SNR dB", "")
    assert f"{NASTY} mse 3 40.0 1.50 0.50" in told
    assert "– Nothing was quantized." in page(findings).text


def test_figures_that_are_not_numbers_are_no_zeros(findings, page):
    nan = float("nan")
    shown = page(replace(findings, arms=(arm("FP32"), arm("INT8", nan, 90.0, OutputError(nan, 1.0, 2.0, 3.0)))))
    assert "– – not within the bound ✕ 90.00 0.00 – 1.0 2.0 3" in shown.text


def test_problems_of_outputs_stand_in_the_table(findings, page):
    assert (
        "INT8 ✕ map is 0 everywhere"
        in page(replace(findings, latency=latency(FASTER, problems=("map is 0 everywhere",)))).text
    )


def test_names_are_escaped(findings, page):
    shown = page(findings)
    assert "✓ class right: <b>&" in shown.text
    assert not any(key == "alt" and value is None for _, key, value in shown.attributes)


def test_nothing_is_fetched(findings, page, tmp_path):
    shown = page(findings)
    html = (tmp_path / "report.html").read_text()
    assert "http://" not in html
    assert "https://" not in html
    assert not {"script", "link", "iframe"} & set(shown.tags)
    assert all(v.startswith("data:") for _, key, v in shown.attributes if key in ("src", "href"))


def test_images_decode_and_are_described(findings, page):
    shown = page(findings)
    sources = [value for tag, key, value in shown.attributes if (tag, key) == ("img", "src")]
    assert len(sources) == 5
    for source in sources:
        Image.open(BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))).verify()
    assert len([v for tag, key, v in shown.attributes if (tag, key) == ("img", "alt") and v]) == 5


def test_headings_stand_in_order(findings, page):
    headings = [t for t in page(findings).tags if t in ("h1", "h2", "h3")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    assert headings.count("h2") == 7


def test_an_unreadable_inspection_is_refused(findings, tmp_path):
    with pytest.raises(ArtifactError, match="build the engine again"):
        report_from_findings(replace(findings, inspections={"a": {"products": [{}]}}), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
