"""The commands on a real deployment, and what a user gets to read after a mistake."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployment import DEPLOYMENT_MACHINE, Deployed, lctr, python
from foreign_cnn import MEAN, STD, foreign_cnn
from PIL import Image

from cli import main
from toolchain import calibration
from toolchain.data.shapes import Shapes

COMMANDS = sorted(main.commands)


def refused(*arguments: object, code: int = 1) -> str:
    """What a failing command says: one sentence on standard error, nothing on standard output."""
    result = lctr(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exc_info
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr.strip()


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


def equalized_by(record: dict[str, Any]) -> dict[str, str]:
    """Linear -> how its activation was equalized."""
    return {name: each["how"] for each in record["equalized"] for name in each["linears"]}


def test_quantize_says_what_stays_float(deployed: Deployed, tmp_path: Path) -> None:
    calibrated = ("quantize", deployed.folder / "model.onnx", "--images", deployed.folder / "synthetic")
    few = (*calibrated, "--count", "4", "--method", "max")
    plain = equalized_by(json.loads(lctr(*few, "-o", tmp_path / "all.onnx", "--json").stdout))
    # Which blocks need factors in both layers depends on the images.
    mlps = [name.removesuffix("fc1/MatMul") for name in plain if name.endswith("mlp.fc1/MatMul")]
    mlp = next(each for each in mlps if f"{each}fc2/MatMul" in plain)
    part = (*few, "--keep-float", f"{mlp}fc1/*", "-o", tmp_path / "q.onnx")
    record = json.loads(lctr(*part, "--json").stdout)
    assert record["images"] == 4
    assert record["ranges"]["image"]["method"] == "known"
    assert f"{mlp}fc1/MatMul" in record["left_float"]
    assert f"{mlp}fc2/MatMul" in record["quantized"]
    # What stays float is equalized all the same, and says so.
    how = equalized_by(record)
    assert how[f"{mlp}fc1/MatMul"].startswith(f"folded into {mlp.removesuffix('mlp.')}norm2/")
    assert how[f"{mlp}fc2/MatMul"].startswith("Mul ")
    again = lctr(*part)
    assert "reused" in again.stdout
    assert f"{len(record['ranges']) - 1} by max, 1 by known" in again.stdout
    assert f"{mlp}fc1/MatMul" in again.stdout


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(6):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


NORMALIZED = ("--mean", *MEAN, "--std", *STD)


@pytest.mark.parametrize(
    ("batch", "size", "said", "images"), [("n", "11", (), 6), ("n", "s", ("--image-size", 11), 6), ("4", "11", (), 4)]
)
def test_quantize_takes_a_model_of_somebody_else(
    batch: str, size: str, said: tuple[object, ...], images: int, photographs: Path, tmp_path: Path
) -> None:
    model = foreign_cnn(tmp_path / "cnn.onnx", batch, size)
    told = lctr("quantize", model, "--images", photographs, *NORMALIZED, *said, "--json")
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout)
    assert record["quantized"] == ["stem", "fc"]
    assert record["images"] == images  # a batch of 4 is filled once
    # A black and a white pixel are known without an image: the red channel's -2 and 2, the green one's 3, blue's 7.
    assert record["ranges"]["pixels"]["amax"] == pytest.approx(7)
    assert record["ranges"]["pixels"]["method"] == "known"
    assert record["ranges"] == json.loads((tmp_path / "cnn.int8.ranges.json").read_text())["tensors"]
    assert (tmp_path / "cnn.int8.onnx").exists()


def test_ranges_do_not_depend_on_the_batch(deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--images", deployed.folder / "synthetic", "--count", 5, "--method", "max", "--json")
    amax = []
    for batch in (1, 5):
        monkeypatch.setattr(calibration, "BATCH", batch)
        told = lctr("quantize", deployed.folder / "model.onnx", *options, "-o", tmp_path / f"{batch}.onnx")
        amax.append({name: found["amax"] for name, found in json.loads(told.stdout)["ranges"].items()})
    # Not to the bit: the runtime cuts its matrix products differently.
    assert amax[0] == pytest.approx(amax[1], rel=1e-4)


def test_ranges_carry_over_to_the_same_graph_alone(photographs: Path, tmp_path: Path) -> None:
    model = foreign_cnn(tmp_path / "cnn.onnx")
    options = ("--images", photographs, *NORMALIZED, "--method", "mse", "--json")
    record = json.loads(lctr("quantize", model, *options).stdout)
    ranges = tmp_path / "cnn.int8.ranges.json"
    (equalized,) = record["equalized"]
    assert (equalized["activation"], equalized["how"], equalized["linears"]) == ("flat", "Mul flat/equalize", ["fc"])
    assert json.loads(ranges.read_text())["exponents"].keys() == {"flat"}
    again = lctr("quantize", model, "--ranges", ranges, "-o", tmp_path / "again.onnx")
    assert again.exit_code == 0, again.output
    assert "2 products quantized on 6 images." in again.stdout
    assert "Mul flat/equalize" in again.stdout
    assert "Ranges of 2 tensors: 1 by known, 1 by mse" in again.stdout
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "cnn.int8.onnx").read_bytes()
    assert (tmp_path / "again.ranges.json").read_bytes() == ranges.read_bytes()
    assert "reused" in lctr("quantize", model, "--ranges", ranges, "-o", tmp_path / "again.onnx").stdout
    kept = lctr("quantize", model, "--ranges", ranges, "--keep-float", "fc", "-o", tmp_path / "kept.onnx")
    assert "1 products quantized" in kept.stdout
    other = foreign_cnn(tmp_path / "other.onnx", seed=1)
    told = refused("quantize", other, "--ranges", ranges)
    assert "cnn.int8.ranges.json was computed for another graph" in told
    assert not (tmp_path / "other.int8.onnx").exists()


def test_a_calibration_cache_comes_beside(photographs: Path, tmp_path: Path) -> None:
    model, cache = foreign_cnn(tmp_path / "cnn.onnx"), tmp_path / "cnn.cache"
    options = ("--images", photographs, *NORMALIZED, "--cache", cache, "--cache-version", "10.3.0", "--json")
    assert "--no-equalize" in refused("quantize", model, *options, code=2)
    record = json.loads(lctr("quantize", model, *options, "--no-equalize").stdout)
    assert record["equalized"] == []
    head, *lines = cache.read_text().splitlines()
    assert head == "TRT-100300-EntropyCalibration2"
    scales = {name: np.frombuffer(bytes.fromhex(digits), ">f4")[0] for name, digits in (x.split(": ") for x in lines)}
    assert list(scales) == ["pixels", "first", "flat", "scores"]
    assert {name: 127 * scale for name, scale in scales.items()} == pytest.approx(
        {name: found["amax"] for name, found in record["ranges"].items()}
    )
    assert lctr("verify", cache).exit_code == 0
    # Ranges observed without it lack what comes out of the products.
    lctr("quantize", model, "--images", photographs, *NORMALIZED, "--no-equalize")
    ranges = tmp_path / "cnn.int8.ranges.json"
    told = refused("quantize", model, "--ranges", ranges, "--cache", tmp_path / "no.cache")
    assert "has no range of 'first' (2 of 4 tensors" in told
    lctr("quantize", model, "--images", photographs, *NORMALIZED)
    told = refused("quantize", model, "--ranges", ranges, "--cache", tmp_path / "no.cache")
    assert "holds the ranges of the equalized model" in told
    assert not (tmp_path / "no.cache").exists()


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
