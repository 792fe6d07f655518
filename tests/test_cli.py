"""The commands on a real deployment, and what a user gets to read after a mistake."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from deployment import DEPLOYMENT_MACHINE, Deployed, lctr, python, refused
from PIL import Image

from cli import main
from toolchain.data.shapes import Shapes

COMMANDS = sorted(main.commands)


def test_help_is_light() -> None:
    loaded = python("import sys; from cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)")
    assert "deploy" in loaded.stdout
    assert not {"torch", "onnx", "onnxruntime", "numpy", "cv2", "rich"} & set(loaded.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    told = lctr(command, "--help")
    assert told.exit_code == 0
    parameters = [p for p in main.commands[command].params if p.param_type_name == "option"]
    undescribed = [p.name for p in parameters if p.name != "help" and not p.help]
    # Of a recipe's numbers the names say everything.
    assert set(undescribed) <= {"epochs", "batch_size", "learning_rate", "weight_decay"}


def test_commands_stand_in_the_order_of_a_deployment() -> None:
    names = list(main.commands)
    first = ["deploy", "train", "import", "statistics", "synthesize", "export", "quantize", "finetune", "build"]
    assert names[:9] == first


def test_a_command_that_needs_the_training_stack_says_so(deployed: Deployed) -> None:
    done = python(DEPLOYMENT_MACHINE, "export", deployed.model)
    assert done.returncode == 1
    assert done.stderr.strip() == "Error: this command needs torch, which is not installed: install lctr[compile]."


def test_localize_finds_the_object_in_every_form(deployed: Deployed, tmp_path: Path) -> None:
    samples = [Shapes("test")[i] for i in (3, 5)]
    for k, sample in enumerate(samples):
        Image.fromarray(sample.image).save(tmp_path / f"{k}.png")
    pictures = [tmp_path / "0.png", tmp_path / "1.png"]
    found = {
        form: json.loads(lctr("localize", file, *pictures, "-o", tmp_path / form).stdout)
        for form, file in {
            "torch": deployed.model,
            "onnx": deployed.folder / "model.onnx",
            "int8": deployed.folder / "model.int8.onnx",
        }.items()
    }
    for plain, exported in zip(found["torch"], found["onnx"], strict=True):
        assert plain["class_name"] == exported["class_name"]
        assert plain["box"] == pytest.approx(exported["box"], abs=1.5)
        assert plain["confidence"] == pytest.approx(exported["confidence"], abs=1e-3)
    for form, records in found.items():
        for record, sample in zip(records, samples, strict=True):
            drawn = np.asarray(Image.open(record["overlay"]))
            assert drawn.shape == sample.image.shape
            assert not np.array_equal(drawn, sample.image), form


def test_evaluate_agrees_with_the_deployment(deployed: Deployed) -> None:
    found = json.loads(lctr("evaluate", deployed.folder / "model.int8.onnx", "--images", "60", "--json").stdout)
    arm = deployed.record["arms"][1]["evaluation"]
    assert {key: found[key] for key in arm} == arm


def test_benchmark_compares_and_gates(deployed: Deployed) -> None:
    files = (deployed.folder / "model.onnx", deployed.folder / "model.int8-noise.onnx")
    quick = ("--batch", "2", "--warmup", "0", "--rounds", "2", "--iterations", "1")
    told = lctr("benchmark", *files, *quick, "--data", "shapes", "--images", "24", "--json")
    record = json.loads(told.stdout)
    assert list(record["latency"]["batches"]["2"]) == ["model.onnx", "model.int8-noise.onnx"]
    assert record["accuracy"]["model.onnx"]["error"] is None
    table = lctr("benchmark", *files, *quick)
    assert "images/s" in table.stdout
    late = lctr("benchmark", *files, *quick, "--max-p99", "0.001ms")
    assert late.exit_code == 3
    assert "over --max-p99 0.001 ms" in late.stderr
    same = lctr("benchmark", files[0], files[0].parent / "model.int8.onnx", *quick, "--max-p99", "1e6ms")
    assert same.exit_code == 0


def test_the_engine_s_inspection_reads_well(deployed: Deployed) -> None:
    told = lctr("inspect", deployed.folder / "model.int8.engine").stdout
    assert "compiled ahead of time, not run on a GPU" in told
    assert "linear: 3 of 24 fp16, 21 of 24 int8" in told
    assert "convolution: 2 of 2 int8" in told
    assert "fused attention kernels: 5" in told


def test_synthesize_without_statistics_says_what_is_missing(deployed: Deployed, tmp_path: Path) -> None:
    told = lctr("synthesize", deployed.model, "--no-statistics", "--count", "2", "--steps", "1", "-o", tmp_path / "s")
    assert told.exit_code == 0
    assert told.stderr.startswith("Warning: ")
    assert len(list((tmp_path / "s").glob("*.png"))) == 2


def test_verify_finds_what_was_changed(deployed: Deployed, tmp_path: Path) -> None:
    whole = lctr("verify", deployed.folder)
    assert whole.exit_code == 0
    assert "model: model.onnx" in whole.stdout
    copy = tmp_path / "copy"
    shutil.copytree(deployed.folder, copy)
    (copy / "model.onnx").write_bytes(b"changed")
    changed = lctr("verify", copy)
    assert changed.exit_code == 1
    assert "model.onnx is not what its sidecar describes" in changed.stderr


def test_a_tiny_training_runs_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    options = ("--preset", "lctr-nano", "--data", "shapes", "--images", "24", "--batch-size", "12", "--epochs", "1")
    for name in ("a", "b"):
        done = lctr("train", *options, "-o", tmp_path / f"{name}.safetensors", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["validation"]["images"] == 600
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (tmp_path / "a.statistics.safetensors").exists()
    assert not (tmp_path / "a.safetensors.state").exists()


# Typical mistakes.


@pytest.mark.parametrize(
    "command", [("evaluate",), ("inspect",), ("localize", "picture.png"), ("benchmark",), ("export",), ("verify",)]
)
def test_a_missing_file_is_named(command: tuple[str, ...], tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    name, *rest = command
    told = refused(name, tmp_path / "none.onnx", *(picture for _ in rest))
    assert "none.onnx does not exist: check the path." in told
    assert told.count("\n") == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("train", "--preset", "lctr-huge", "--data", "shapes", "-o", "x.safetensors"), "unknown preset 'lctr-huge'"),
        (("train", "--preset", "lctr-nano", "--data", "shapes", "-o", "x.pth"), "x.pth does not end in .safetensors"),
        (("train", "--preset", "lctr-nano", "--data", "coco:x", "-o", "x.safetensors"), "unknown data set 'coco:x'"),
        (
            ("train", "--preset", "lctr-nano", "--data", "shapes", "--freeze-backbone", "-o", "x.safetensors"),
            "--freeze-backbone without --init",
        ),
        (
            ("train", "--preset", "lctr-nano", "--data", "shapes", "--accumulate", "0", "-o", "x.safetensors"),
            "--accumulate 0 is too low",
        ),
        (
            (
                *("train", "--preset", "lctr-nano", "--data", "shapes", "--freeze-backbone", "--train-blocks", "2"),
                *("-o", "x.safetensors"),
            ),
            "--freeze-backbone and --train-blocks 2 contradict each other",
        ),
        (("export", "{model}", "-o", "x.pb"), "x.pb does not end in .onnx"),
        (("quantize", "{model}", "--images", "noise"), "does not end in .onnx"),
        (("quantize", "{onnx}", "--images", "noise", "--method", "guess", "-o", "x.onnx"), "guess"),
        (("quantize", "{onnx}", "-o", "x.onnx"), "with --images, or a file with --ranges"),
        (
            ("quantize", "{onnx}", "--images", "noise", "--ranges", "r.json", "-o", "x.onnx"),
            "--ranges and --images contra",
        ),
        (
            ("quantize", "{onnx}", "--ranges", "r.json", "--count", "8", "-o", "x.onnx"),
            "--ranges and --count contradict each other",
        ),
        (("quantize", "{onnx}", "--images", "noise", "--count", "0", "-o", "x.onnx"), "count is 0"),
        (
            ("quantize", "{onnx}", "--images", "noise", "--mean", "0", "0", "0", "-o", "x.onnx"),
            "model.onnx says itself how its images are prepared",
        ),
        (
            ("quantize", "{onnx}", "--images", "noise", "--cache", "x", "--cache-version", "11.0.0", "-o", "x.onnx"),
            "TensorRT 11.0.0 reads no calibration cache",
        ),
        (("build", "{onnx}", "--backend", "tensorflow", "-o", "x.engine"), "unknown backend 'tensorflow'"),
        (("build", "{onnx}", "--backend", "tensorrt-rtx", "--target", "sm1", "-o", "x.engine"), "sm1"),
        (("benchmark", "{onnx}", "--max-drop", "0.5"), "--max-drop needs images"),
        (("benchmark", "{onnx}", "--max-drop", "0.5", "--data", "shapes"), "needs a reference to lose against"),
        (("benchmark", "{onnx}", "--max-p99", "soon"), "--max-p99 soon is no latency"),
        (("benchmark", "{onnx}", "--max-p99", "5"), "--max-p99 5 is no latency: write it as 5ms"),
        (("benchmark", "{onnx}", "--max-energy", "5"), "--max-energy 5 is no energy"),
        (("benchmark", "{onnx}", "--batch", "1,x"), "--batch x is no batch size"),
        (("benchmark", "{onnx}", "--batch", "1", "--batch", "2,1"), "repeat"),
        (("benchmark", "{onnx}", "--duration", "0"), "measures nothing"),
        (("benchmark", "{onnx}", "--iterations", "3", "--duration", "1s"), "--iterations and --duration contradict"),
        (("benchmark", "{onnx}", "--streams", "0"), "0 streams"),
        (("benchmark", "{onnx}", "--cuda-graph"), "no GPU to give it a CUDA graph"),
        (("benchmark", "{onnx}", "-o", "x.txt"), "x.txt does not end in .json"),
        (("benchmark", "{onnx}", "--plot", "x.svg"), "x.svg does not end in .png"),
        (("evaluate", "{onnx}", "--split", "holdout"), "unknown split 'holdout'"),
        (("synthesize", "{model}", "--count", "0", "-o", "x"), "0"),
    ],
)
def test_wrong_usage_exits_with_2(
    arguments: tuple[str, ...], complaint: str, deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"model": deployed.model, "onnx": deployed.folder / "model.onnx"}
    assert complaint in refused(*(a.format(**places) for a in arguments), code=2)
    assert os.listdir(tmp_path) == []  # noqa: PTH208 (hidden leftovers too)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("model.onnx", ("evaluate", "{file}")),
        ("model.onnx", ("inspect", "{file}")),
        ("model.onnx", ("quantize", "{file}", "--images", "noise", "-o", "{out}.onnx")),
        ("model.onnx", ("build", "{file}", "--backend", "tensorrt-rtx", "-o", "{out}.engine")),
        ("model.onnx", ("build", "{file}", "--backend", "onnxruntime", "-o", "{out}.engine")),
        ("model.int8.engine", ("inspect", "{file}")),
        ("model.int8.engine", ("benchmark", "{file}")),
    ],
)
def test_a_truncated_file_is_refused(name: str, arguments: tuple[str, ...], deployed: Deployed, tmp_path: Path) -> None:
    file = tmp_path / "cut" / name
    file.parent.mkdir()
    file.write_bytes((deployed.folder / name).read_bytes()[:100_000])
    if name.endswith(".engine"):
        shutil.copy(deployed.folder / f"{name}.json", file.parent)
    out = tmp_path / "out"
    out.mkdir()
    told = refused(*(a.format(file=file, out=out / "made") for a in arguments))
    assert str(file) in told
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("command", ["export", "evaluate", "synthesize", "deploy"])
def test_a_truncated_checkpoint_is_refused(command: str, deployed: Deployed, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(deployed.model.read_bytes()[:100_000])
    shutil.copy(deployed.model.with_name(f"{deployed.model.stem}.statistics.safetensors"), tmp_path)
    output = () if command == "evaluate" else ("-o", tmp_path / "made.onnx")
    assert "model.safetensors is no whole safetensors file" in refused(command, file, *output)
    assert not (tmp_path / "made.onnx").exists()


def test_what_is_no_image_is_refused_before_any_work(deployed: Deployed, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    told = refused("localize", deployed.model, tmp_path / "notes.png", "-o", tmp_path / "out")
    assert "notes.png is no readable image" in told
    assert not (tmp_path / "out").exists()


def test_an_engine_that_cannot_run_here_says_why(deployed: Deployed) -> None:
    assert "GPU" in refused("evaluate", deployed.folder / "model.int8.engine")


def test_statistics_of_another_model_are_refused(deployed: Deployed, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    content = bytearray(deployed.model.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    bundle = deployed.model.with_name(f"{deployed.model.stem}.statistics.safetensors")
    told = refused("synthesize", other, "--statistics", bundle, "--count", "2", "-o", tmp_path / "s")
    assert "other.safetensors" in told
    assert not (tmp_path / "s").exists()


def test_data_of_another_size_is_refused(deployed: Deployed, tmp_path: Path) -> None:
    told = refused("deploy", deployed.model, "--data", f"cub:{tmp_path}", "-o", tmp_path / "out")
    assert "name the folder that CUB-200-2011 was unpacked to" in told
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_named(deployed: Deployed) -> None:
    assert "/proc/none" in refused("export", deployed.model, "-o", "/proc/none/model.onnx")
