"""`lctr quantize`: our localizer and models of others, images and ranges, and what stays beside the graph."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployment import Deployed, lctr, refused
from foreign_cnn import MEAN, STD, foreign_cnn
from PIL import Image

from toolchain import calibration


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
