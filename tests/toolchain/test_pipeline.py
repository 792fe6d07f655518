import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from deployment import DEPLOY, Deployed, lctr

from toolchain import calibration, pipeline
from toolchain.artifacts import load, read_sidecar
from toolchain.pipeline import Plan, deploy


def test_every_artifact_is_sealed_and_names_its_inputs(deployed: Deployed) -> None:
    made = {
        "synthetic": "synthetic",
        "model.onnx": "onnx",
        "model.int8.onnx": "onnx-int8",
        "model.fp16.onnx": "onnx",
        "model.fp16.int8.onnx": "onnx-int8",
        "model.int8.engine": "engine",
        "benchmark.json": "benchmark",
        "evaluation.json": "evaluation",
    }
    for name, kind in made.items():
        load(deployed.folder / name, kind)
    hashes = {name: read_sidecar(deployed.folder / name).sha256 for name in made}
    quantized = read_sidecar(deployed.folder / "model.int8.onnx").inputs
    assert quantized["model"]["sha256"] == hashes["model.onnx"]
    assert quantized["images"]["sha256"] == hashes["synthetic"]
    engine = read_sidecar(deployed.folder / "model.int8.engine")
    assert engine.inputs["model"]["sha256"] == hashes["model.fp16.int8.onnx"]


def test_all_arms_are_measured_on_the_same_images(deployed: Deployed) -> None:
    arms = deployed.record["arms"]
    arms_made = ["FP32", "INT8, FDDA", "INT8, FDDA, FP16 base", "INT8, noise", "INT8, real images"]
    assert [arm["name"] for arm in arms] == arms_made
    assert {arm["evaluation"]["images"] for arm in arms} == {60}
    assert len({arm["evaluation"]["tau"] for arm in arms}) == 1
    assert arms[0]["error"] is None
    for arm in arms[1:]:
        # An INT8 model is near its source and is not its source.
        assert 5 < arm["error"]["map_snr_db"] < 60


def test_the_bundled_localizer_localizes(deployed: Deployed) -> None:
    found = deployed.record["arms"][0]["evaluation"]
    # The README's figures are of 2,400 images; 60 of them are enough to see a localizer that is broken.
    assert found["top1"] > 80
    assert found["gt_known_loc"] > 65


def test_everything_but_routing_and_pooling_is_compiled_int8(deployed: Deployed) -> None:
    counts = deployed.record["counts"]["model.int8.engine"]
    blocks, per_block = 5, 4
    classifier = 1
    assert counts["linear"] == {"fp16": 3, "int8": blocks * per_block + classifier}
    assert counts["convolution"] == {"int8": 2}
    # RPAM's three products and the two that mix the predicted class's map are no attention.
    assert counts["attention"] == {"fp16": blocks * 2}
    assert counts["activation product"] == {"fp16": 5}
    products = json.loads(lctr("inspect", deployed.folder / "model.int8.engine", "--json").stdout)["products"]
    weighted = [p for p in products if p["kind"] in ("linear", "convolution")]
    left = [p["name"] for p in weighted if p["type"] != "int8"]
    assert left == ["CDM._routing_fn_two.fc/Gemm", "CDM._routing_fn_two.fc2/Gemm", "head/MatMul"]


def test_a_second_run_reuses_everything(deployed: Deployed) -> None:
    again = lctr("deploy", deployed.model, "-o", deployed.folder, *DEPLOY)
    assert again.exit_code == 0, again.output
    stages = dict(re.findall(r"^(.+?)  +(\S.*)$", again.stderr, re.MULTILINE))
    looked = {"inspect", "examples"}
    assert looked < set(stages)
    assert {state for name, state in stages.items() if name not in looked} == {"reused"}


def test_a_changed_artifact_is_made_again_and_what_stands_on_it_is_not_trusted(
    deployed: Deployed, tmp_path: Path
) -> None:
    shutil.copytree(deployed.folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.int8.engine").write_bytes(b"changed")
    again = json.loads(lctr("deploy", deployed.model, "-o", tmp_path / "copy", *DEPLOY, "--json").stdout)
    remade = [stage["name"] for stage in again["stages"] if not stage["reused"]]
    assert remade == ["build engine", "inspect", "examples"]


@dataclass(frozen=True)
class Watched:
    """A second deployment of the same, into an empty folder; `reads` are the stages done when real data was opened."""

    folder: Path
    finished: list[str]
    reads: list[tuple[str, ...]]


@pytest.fixture(scope="module")
def watched(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    again = Watched(tmp_path_factory.mktemp("again"), [], [])
    with pytest.MonkeyPatch.context() as patch:
        for module in (calibration, pipeline):

            def opening(*arguments, opened=module.open_data):
                again.reads.append(tuple(again.finished))
                return opened(*arguments)

            patch.setattr(module, "open_data", opening)
        plan = Plan(calibration_images=24, steps=6, test_images=60)
        deploy(deployed.model, again.folder, plan, ended=lambda stage: again.finished.append(stage.name))
    return again


def test_the_same_seed_gives_the_same_bytes(deployed: Deployed, watched: Watched) -> None:
    for name in ("synthetic", "model.onnx", "model.int8.onnx", "model.fp16.onnx", "model.fp16.int8.onnx"):
        assert read_sidecar(watched.folder / name).sha256 == read_sidecar(deployed.folder / name).sha256


def test_no_real_image_is_read_before_the_engine_is_finished(watched: Watched) -> None:
    compiled = ["synthetic images", "export", "quantize on 24 synthetic images", "export, FP16"]
    compiled += ["quantize, FP16 base, on 24 synthetic images", "build engine", "benchmark"]
    assert watched.finished[: len(compiled)] == compiled
    assert watched.reads, "the other arms and the evaluation do read"
    assert all(set(compiled) <= set(done) for done in watched.reads)


def test_without_statistics_the_run_does_not_start(model: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(model.read_bytes())
    refused = lctr("deploy", alone, "-o", tmp_path / "out")
    assert refused.exit_code == 1
    assert "alone.statistics.safetensors does not exist" in refused.stderr
    assert "lctr statistics" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_the_report_shows_what_was_measured(deployed: Deployed) -> None:
    report = (deployed.folder / "report.html").read_text()
    outside = re.search(r"""(src|href)=["'](?!data:|#)|url\((?!["']?(data:|#))""", report)
    assert not outside, "one file that needs nothing else"
    for arm in deployed.record["arms"]:
        assert arm["name"] in report
        assert f"{arm['evaluation']['gt_known_loc']:.2f}" in report
    assert report.count("<figure") >= 6


def test_the_preview_shows_the_synthetic_images(deployed: Deployed) -> None:
    sheet = cv2.imread(str(deployed.folder / "synthetic.preview.png"))
    first = cv2.imread(str(sorted((deployed.folder / "synthetic").glob("*.png"))[0]))
    size = first.shape[0]
    assert np.array_equal(sheet[:size, :size], first)
