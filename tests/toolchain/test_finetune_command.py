"""`lctr finetune` from folder to files, and what it says to a user who made a mistake."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from deployment import lctr
from PIL import Image
from safetensors.torch import load_file
from tiny_tuning import ONE_BLOCK, TinyResNet, as_it_stands, one_block, tiny_images

from calib import image_set
from toolchain.artifacts import read_sidecar, seal, sha256_of
from toolchain.card import GUIDE, GuideCard, ModelCard
from toolchain.finetuning.images import images_in
from toolchain.model import checkpoint
from toolchain.model.deployment import DeployedLctr
from toolchain.model.guide import GUIDE_PRESETS, Guide
from toolchain.model.presets import PRESETS
from toolchain.preprocessing import Preprocessing

FACTORY = ("--guide", "tiny_tuning:tiny_resnet", "--image-size", "8", "--num-classes", "3")
NORMALIZED = ("--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25")
WINDOW = Preprocessing(16, 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
QUICK = ("--epochs", "2", "--range-epochs", "1", "--learning-rate", "1e-4", "--json")


def folder_of(path: Path, side: int, count: int = 8) -> Path:
    path.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{index:04d}_{'abc'[index % 3]}.png")
    return path


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """A set that says which class each of its images was made for."""
    folder = folder_of(tmp_path / "synthetic", 16)
    seal(folder, image_set.KIND, metadata={"labels": [index % 3 for index in range(8)]})
    return folder


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    """One of ours, as `lctr train --guide` leaves it, with statistics that a training could have left."""
    torch.manual_seed(0)
    network = Guide(GUIDE_PRESETS["guide-nano"], 3)
    network(torch.randn(32, 3, 16, 16))
    path = tmp_path / "model.guide.safetensors"
    checkpoint.save(network, GuideCard("guide-nano", ("a", "b", "c"), WINDOW), path)
    return path


@pytest.fixture
def localizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(PRESETS, ONE_BLOCK.name, ONE_BLOCK)
    path = tmp_path / "model.safetensors"
    checkpoint.save(one_block(), ModelCard(ONE_BLOCK.name, ("a", "b", "c"), WINDOW, 0.1), path)
    seal(path, checkpoint.KIND)
    return path


def test_a_localizer_becomes_a_tuned_one(localizer: Path, synthetic: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        answers = DeployedLctr(one_block())(images_in(synthetic, WINDOW).pixels)[0].argmax(1).tolist()
    seal(synthetic, image_set.KIND, metadata={"labels": [*((each + 1) % 3 for each in answers[:5]), *answers[5:]]})
    output = tmp_path / "tuned.safetensors"
    command = ("finetune", localizer, "--images", synthetic, "-o", output, *QUICK)
    told = lctr(*command)
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["labels"] == "recorded"
    assert found["label_agreement"] == 3 / 8
    assert "Warning: the teacher predicts" in told.stderr
    assert 0 <= found["deviation"] < 0.05
    assert len((tmp_path / "tuned.log.csv").read_text().splitlines()) == 3
    tuned, card = checkpoint.load(output)
    assert card == checkpoint.card_of(localizer)
    assert not torch.equal(tuned.CDM.weight, one_block().CDM.weight)
    facts = read_sidecar(tmp_path / "tuned.int8.onnx").metadata
    assert facts["ranges"]["image"]["method"] == "known"
    assert any("_routing_fn_two" in name for name in facts["left_float"])
    assert not (tmp_path / "tuned.safetensors.state").exists()
    again = lctr(*command)
    assert json.loads(again.stdout)["reused"]


def test_a_guide_becomes_a_state_dict_and_a_graph_of_four_bits(tmp_path: Path) -> None:
    images, output = folder_of(tmp_path / "photos", 20), tmp_path / "tuned.safetensors"
    bits = ("--weight-bits", "4", "--activation-bits", "4", "--real-images", images, "--count", "3")
    told = lctr("finetune", *FACTORY, *NORMALIZED, "--images", images, *bits, "-o", output, *QUICK)
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["labels"] == "predicted by the teacher"
    network = TinyResNet().eval()
    network.load_state_dict(load_file(output))
    expected = network(tiny_images()).detach().numpy()
    np.testing.assert_allclose(as_it_stands(tmp_path / "tuned.onnx", tiny_images())[0], expected, rtol=1e-3, atol=1e-3)
    levels = json.loads((tmp_path / "tuned.int8.ranges.json").read_text())["levels"]
    assert levels == {"conv.weight": [-8, 7], "shortcut.0.weight": [-8, 7], "relu": [0, 15]}


def test_a_guide_of_ours_becomes_another_one(guide: Path, synthetic: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned.safetensors"
    told = lctr("finetune", "--guide", guide, "--images", synthetic, "-o", output, *QUICK)
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["labels"] == "recorded"
    assert read_sidecar(output).kind == GUIDE
    assert read_sidecar(output).inputs["guide"]["sha256"] == sha256_of(guide)
    (before, _), (tuned, card) = checkpoint.load_guide(guide), checkpoint.load_guide(output)
    assert card.class_names == ("a", "b", "c")
    weights, old = tuned.state_dict(), before.state_dict()
    moved = {name for name, value in weights.items() if not torch.equal(value, old[name])}
    assert moved
    # In evaluation mode: what BatchNorm saw in training stays.
    assert not any("running" in name for name in moved)
    images = tiny_images(4, side=16)
    expected = tuned(images).detach().numpy()
    found = as_it_stands(tmp_path / "tuned.onnx", images)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_guide_of_ours_says_itself_what_it_is_and_stays(guide: Path, synthetic: Path, tmp_path: Path) -> None:
    command = ("finetune", "--guide", guide, "--images", synthetic, "-o")
    told = lctr(*command, tmp_path / "tuned.safetensors", "--num-classes", "3")
    assert told.exit_code == 2
    assert "says itself what its images and classes are: leave these options out." in told.stderr
    told = lctr(*command, guide)
    assert told.exit_code == 2
    assert "is the teacher, which the result must not replace" in told.stderr


def test_of_noise_the_teacher_says_the_classes(guide: Path, tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    made = lctr("synthesize", "--guide", guide, "--method", "noise", "--count", "8", "-o", noise)
    assert made.exit_code == 0, made.stderr
    assert read_sidecar(noise).metadata["labels"] is None
    told = lctr("finetune", "--guide", guide, "--images", noise, "-o", tmp_path / "tuned.safetensors", *QUICK[:-1])
    assert told.exit_code == 0, told.stderr
    assert "Labels predicted by the teacher." in told.stdout
    assert "Warning" not in told.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Name one network to fine-tune: a checkpoint MODEL, or another one with --guide."),
        (("model.safetensors", "--num-classes", "3"), "MODEL and --num-classes contradict each other: leave one out."),
        (
            ("--guide", "tiny_tuning:absent", *FACTORY[2:], *NORMALIZED),
            "has no 'absent': name a function that it has.",
        ),
        (
            ("--guide", "nowhere:made", *FACTORY[2:], *NORMALIZED),
            "there is no module 'nowhere': give FILE.safetensors",
        ),
        (
            FACTORY,
            "tiny_resnet does not say what its images are: give --image-size, --mean and --std",
        ),
        (
            ("--guide", "tiny_tuning", *FACTORY[2:], *NORMALIZED),
            "names no guide: give FILE.safetensors or package.",
        ),
        ((*FACTORY, *NORMALIZED, "--weight-bits", "9"), "--weight-bits 9 cannot be: give 4 to 8."),
        ((*FACTORY, *NORMALIZED, "--count", "3"), "--count is of real images"),
        ((*FACTORY, *NORMALIZED, "--real-images", "x", "--data", "shapes"), "both name real images: leave one out."),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    told = lctr("finetune", *arguments, "--images", tmp_path, "-o", tmp_path / "tuned.safetensors")
    assert told.exit_code == 2, told.output
    assert sentence in told.stderr
    assert [*tmp_path.iterdir()] == []


def test_the_teacher_is_not_overwritten(localizer: Path, synthetic: Path) -> None:
    before = localizer.read_bytes()
    told = lctr("finetune", localizer, "--images", synthetic, "-o", localizer, *QUICK)
    assert told.exit_code == 2
    assert "is the teacher, which the result must not replace: choose another output path." in told.stderr
    assert localizer.read_bytes() == before


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "photos", 8)
    guide = (*FACTORY[:4], "--num-classes", "4", *NORMALIZED)
    told = lctr("finetune", *guide, "--images", images, "-o", tmp_path / "tuned.safetensors")
    assert told.exit_code == 1
    assert "has 3 classes, not 4: check this number." in told.stderr
