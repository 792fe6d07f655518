"""`lctr statistics`: what it says of small classes, and which bundles `lctr synthesize` refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from deployment import lctr
from PIL import Image
from tiny_training import PLAIN, TINY, tiny_model

from toolchain.artifacts import read_sidecar, sha256_of, sidecar_of
from toolchain.card import ModelCard
from toolchain.model import checkpoint

NAMES = ("blue", "green", "red")


@pytest.fixture
def model(tmp_path: Path, tiny_preset: None) -> Path:
    path = tmp_path / "model.safetensors"
    checkpoint.save(tiny_model(), ModelCard(TINY.name, NAMES, PLAIN, 0.1), path)
    return path


def statistics(model: Path, counts: tuple[int, ...], *options: object) -> Result:
    """`lctr statistics` of so many training images per class."""
    data = model.parent / "data"
    for label, name in enumerate(NAMES):
        for split, count in (("train", counts[label]), ("val", 1), ("test", 1)):
            (data / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng([label, index]).integers(0, 90, (16, 16, 3), dtype=np.uint8)
                pixels[..., label] += 150
                Image.fromarray(pixels).save(data / split / name / f"{index}.png")
    return lctr("statistics", model, "--data", f"folder:{data}", *options)


def bundle_of(model: Path) -> Path:
    return model.with_name("model.statistics.safetensors")


def synthesized(model: Path, *options: object) -> Result:
    return lctr("synthesize", model, *options, "--count", 2, "--steps", 1, "-o", model.parent / "synthetic")


def test_classes_of_few_images_are_pooled_and_named(model: Path) -> None:
    told = statistics(model, (8, 7, 2))
    assert told.exit_code == 0, told.output
    assert "1 class centers" in told.stdout
    assert "Fewer than 8 images, in the global statistics only: green, red." in told.stdout
    facts = read_sidecar(bundle_of(model)).metadata
    assert facts["population"] == {
        **{"counts": [8, 7, 2], "min_images": 8, "classes": [0], "pooled": [1, 2], "left_out": []},
        "recognized": facts["population"]["recognized"],
    }
    assert facts["without_center"] == {"pooled": ["green", "red"], "left_out": [], "absent": []}
    assert facts["model_sha256"] == sha256_of(model)
    assert synthesized(model).exit_code == 0


def test_classes_of_few_images_even_together_are_left_out_and_named(model: Path) -> None:
    told = statistics(model, (8, 8, 7), "--json")
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout)
    assert record["without_center"] == {"pooled": [], "left_out": ["red"], "absent": []}
    assert record["population"]["classes"] == [0, 1]
    assert record["model_sha256"] == sha256_of(model)
    again = lctr("statistics", model, "--data", f"folder:{model.parent / 'data'}")
    assert "Fewer than 8 images, even together, and left out: red." in again.stdout
    assert "reused" in again.stdout


def test_fewer_images_make_a_center_when_they_are_asked_to(model: Path) -> None:
    told = statistics(model, (8, 7, 2), "--min-images", 3)
    assert told.exit_code == 0, told.output
    assert read_sidecar(bundle_of(model)).metadata["without_center"]["left_out"] == ["red"]
    told = lctr("statistics", model, "--data", f"folder:{model.parent / 'data'}", "--min-images", 1)
    assert told.exit_code == 2
    assert "a center of one image is that image: give at least 2." in told.stderr


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-5],
        lambda whole: whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :],
        lambda whole: whole.replace(b'"min_images\\": 8', b'"min_images\\": 9'),
    ],
    ids=["truncated", "a bit turned", "header edited"],
)
def test_a_changed_bundle_is_refused(model: Path, damage) -> None:
    assert statistics(model, (8, 8, 8)).exit_code == 0
    bundle = bundle_of(model)
    whole = bundle.read_bytes()
    bundle.write_bytes(damage(whole))
    assert bundle.read_bytes() != whole
    told = synthesized(model)
    assert told.exit_code == 1
    assert told.stderr == (f"Error: {bundle} is not what its sidecar describes (sha256 differs): make it again.\n")
    assert not (model.parent / "synthetic").exists()


def test_a_bundle_of_another_model_is_refused_whatever_stands_beside_it(model: Path) -> None:
    assert statistics(model, (8, 8, 8)).exit_code == 0
    other = model.with_name("other.safetensors")
    network = tiny_model()
    network.CDM.bias.data += 1
    checkpoint.save(network, ModelCard(TINY.name, NAMES, PLAIN, 0.1), other)
    for source in (bundle_of(model), sidecar_of(bundle_of(model))):
        shutil.copy(source, source.with_name(source.name.replace("model.", "other.")))
    for options in (("--statistics", bundle_of(model)), ()):
        told = synthesized(other, *options)
        assert told.exit_code == 1
        assert told.stderr.startswith("Error: ")
        assert f"the statistics of another model than {other} (sha256 differs)" in told.stderr
        assert told.stderr.count("\n") == 1


def test_a_bundle_without_its_sidecar_is_refused(model: Path) -> None:
    assert statistics(model, (8, 8, 8)).exit_code == 0
    sidecar_of(bundle_of(model)).unlink()
    told = synthesized(model)
    assert told.exit_code == 1
    assert told.stderr.count("\n") == 1
