"""Guides through the command line: anybody's by a factory, ours by a file that `lctr train --guide` made."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from deployment import lctr, refused
from guide_factories import CLASSES, MEAN, SIZE, STD, cnn, other_cnn
from PIL import Image
from tiny_training import TINY, cub_folder, tiny_model

from calib.batchnorm import running_moments
from exporters.files import write_onnx
from exporters.torch_export import onnx_from_torch
from toolchain.artifacts import read_sidecar
from toolchain.card import ModelCard
from toolchain.data.sources import preprocessing_for
from toolchain.guides import weights_sha256
from toolchain.model import checkpoint
from toolchain.model.guide import GUIDE_PRESETS, Guide, guide_preset_for
from toolchain.model.presets import PRESETS
from toolchain.pipeline import BUNDLED
from toolchain.stages import guide_of

NORMALIZED = ("--mean", *MEAN, "--std", *STD)
STATED = ("--image-size", SIZE, "--num-classes", CLASSES, *NORMALIZED)
QUICK = ("--count", 6, "--steps", 2)


# A factory's


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("factory") / "images"
    told = lctr("synthesize", "--guide", "guide_factories:cnn", *STATED, *QUICK, "-o", folder)
    assert told.exit_code == 0, told.output
    return folder, told.stderr


def test_a_network_that_nobody_has_statistics_of_guides_by_its_own(synthetic: tuple[Path, str]) -> None:
    folder, said = synthetic
    assert said == ("Warning: no calibration statistics: L_D and L_C were left out, L_BNS and cross-entropy remain\n")
    sidecar = read_sidecar(folder)
    assert set(sidecar.metadata["final_losses"]) == {"total", "random_class", "single_class", "bns"}
    assert sidecar.metadata["missing"] == [said.removeprefix("Warning: ").strip()]
    assert sidecar.parameters["guide"] == "guide_factories:cnn"
    files = sorted(folder.glob("*.png"))
    assert len(files) == 6
    with Image.open(files[0]) as image:
        assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")


def test_its_own_onnx_file_is_quantized_on_the_images(synthetic: tuple[Path, str], tmp_path: Path) -> None:
    model = tmp_path / "cnn.onnx"
    write_onnx(onnx_from_torch(cnn().eval(), image_size=SIZE, metadata={}, output_names=["scores"]), model)
    told = lctr("quantize", model, "--images", synthetic[0], *NORMALIZED, "--method", "max", "--json")
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout)
    assert record["images"] == 6
    assert len(record["quantized"]) == 3
    # The range of what enters the last layer, from the images themselves: the channels are in their order.
    files = sorted(synthetic[0].glob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2) / 255
    images = (pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    network = cnn().eval()
    with torch.no_grad():
        hidden = torch.relu(network.bn1(network.conv1(torch.from_numpy(images).float())))
        last = torch.relu(network.bn2(network.conv2(hidden)))
    seen = [found["amax"] for found in record["ranges"].values()]
    assert any(amax == pytest.approx(float(hidden.max()), rel=1e-3) for amax in seen)
    assert last.max() > 0


def test_the_same_again_is_reused_and_other_weights_are_not(synthetic: tuple[Path, str]) -> None:
    folder, _ = synthetic
    assert "reused" in lctr("synthesize", "--guide", "guide_factories:cnn", *STATED, *QUICK, "-o", folder).stdout
    assert weights_sha256(cnn()) == weights_sha256(cnn()) != weights_sha256(other_cnn())


@pytest.mark.parametrize(
    ("guide", "complaint", "code"),
    [
        ("nowhere:cnn", "there is no module 'nowhere'", 2),
        ("guide_factories.inner:cnn", "there is no module 'guide_factories.inner'", 2),
        ("guide_factories:nothing", "has no 'nothing'", 2),
        ("guide_factories:NUMBER", "'NUMBER' is of type int", 2),
        ("guide_factories:words", "made a list", 1),
        ("guide_factories:broken", "OSError: the weights are gone", 1),
        ("guide_factories:without_batchnorm", "Sequential has no BatchNorm", 1),
        ("guide_factories:maps", "returns shape (1, 3, 16, 16), not logits", 1),
        ("cnn.pth", "names no guide: give FILE.safetensors or package.module:factory", 2),
        ("none.safetensors", "none.safetensors does not exist", 1),
    ],
)
def test_what_is_no_guide_is_refused_in_a_sentence(guide: str, complaint: str, code: int, tmp_path: Path) -> None:
    stated = () if guide.endswith(".safetensors") else STATED
    assert complaint in refused("synthesize", "--guide", guide, *stated, "-o", tmp_path / "s", code=code)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "complaint", "code"),
    [
        ((), "does not say what its images are", 2),
        (("--image-size", 16, *NORMALIZED), "how many classes it has: give --num-classes", 2),
        (("--image-size", 16, "--num-classes", 5, *NORMALIZED), "has 4 classes, not 5", 1),
        (("--image-size", 20, "--num-classes", 4, *NORMALIZED), "does not take images of 20 x 20 pixels", 1),
        ((*STATED, "--method", "psaq"), "guide_factories:cnn has none: use fdda", 2),
        ((*STATED, "--method", "gan"), "unknown method 'gan': choose one of fdda, psaq, noise", 2),
        ((*STATED, "--preset", "slow"), "unknown preset 'slow': choose one of fast, paper", 2),
        ((*STATED, "--method", "noise", "--steps", 3), "noise trains nothing", 2),
        ((*STATED, "--std", 0.1, 0.2, 0), "both are over 0", 2),
    ],
)
def test_options_that_do_not_fit_a_factory(options: tuple[object, ...], complaint: str, code: int) -> None:
    assert complaint in refused("synthesize", "--guide", "guide_factories:cnn", *options, "-o", "unmade", code=code)
    assert not Path("unmade").exists()


def test_a_module_of_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_alone.py").write_text("from guide_factories import cnn\n")
    monkeypatch.chdir(tmp_path)
    told = lctr("synthesize", "--guide", "mine_alone:cnn", *STATED, "--count", 2, "--steps", 1, "-o", "s", "--json")
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout)
    assert record["missing"]
    assert set(record["deviation_ratio"]) == {"bn1", "bn2"}


def test_no_network_at_all() -> None:
    assert "no network is named" in refused("synthesize", "-o", "unmade", code=2)


# Ours


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cub_folder(tmp_path_factory.mktemp("data"), of_class=20)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory):
    """A tiny localizer and its guide, as `lctr train --guide` leaves them, and the options of that command."""
    model = tmp_path_factory.mktemp("trained") / "model.safetensors"
    options = ("train", "--preset", TINY.name, "--data", f"cub:{data}", "--recipe", "shapes", "--cutmix", 0)
    options += ("--epochs", 1, "--batch-size", 6, "--guide", 6, "-o", model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, TINY.name, TINY)
        told = lctr(*options, "--json")
        assert told.exit_code == 0, told.output
        yield model, options, json.loads(told.stdout)


def test_a_guide_is_trained_beside_the_localizer(trained) -> None:
    model, _, record = trained
    guide, card = checkpoint.load_guide(Path(record["guide"]["path"]))
    assert card.class_names == checkpoint.card_of(model).class_names
    assert guide.preset.name == "guide-nano"
    # The classes are three colours.
    assert record["guide"]["top1"] > 60
    assert any(moments.mean.abs().max() > 0.01 for moments in running_moments(guide))
    statistics = read_sidecar(Path(record["guide"]["statistics"])).metadata
    assert len(statistics["layers"]) == 10
    # Ten of them: the published rule starts at the whole part of 11 / 2, less 2.
    assert statistics["center_layers"] == statistics["layers"][3:]


def test_a_guide_alone_is_reused_where_nothing_changed(trained) -> None:
    model, options, _ = trained
    before = model.stat().st_mtime_ns
    told = lctr(*options, "--guide-only")
    assert told.exit_code == 0, told.output
    assert told.stdout.count("reused") == 2
    assert model.stat().st_mtime_ns == before
    assert "add --guide EPOCHS" in refused(
        "train", "--preset", TINY.name, "--data", "shapes", "-o", model, "--guide-only", code=2
    )


@pytest.mark.parametrize("named", [True, False], ids=["for the localizer", "alone"])
def test_a_guide_s_images(trained, named: bool, tmp_path: Path) -> None:
    model, _, record = trained
    guide = record["guide"]["path"]
    told = lctr("synthesize", *([model] if named else []), "--guide", guide, *QUICK, "-o", tmp_path / "s", "--json")
    assert told.exit_code == 0, told.output
    sidecar = read_sidecar(tmp_path / "s")
    assert set(sidecar.inputs) == {"guide", "statistics"}
    assert {"bns", "distorted", "centralized"} <= set(sidecar.metadata["final_losses"])
    assert all("mistakes" in sentence for sentence in json.loads(told.stdout)["missing"])


def test_the_statistics_of_a_guide_are_bound_to_it(trained, data: Path, tmp_path: Path) -> None:
    model, _, record = trained
    own = record["guide"]["statistics"]
    assert "another model than" in refused("synthesize", model, "--statistics", own, *QUICK, "-o", tmp_path / "s")
    named = ("--guide", "guide_factories:cnn", "--image-size", SIZE, "--num-classes", CLASSES, *NORMALIZED)
    taken = tmp_path / "taken.safetensors"
    told = lctr("statistics", *named, "--data", f"cub:{data}", "-o", taken)
    assert told.exit_code == 0, told.output
    assert "3 class centers in 2 layers." in told.stdout
    assert lctr("synthesize", *named, "--statistics", taken, *QUICK, "-o", tmp_path / "s").exit_code == 0
    other = ("--guide", "guide_factories:other_cnn", *named[2:])
    assert "another model than guide_factories:other_cnn" in refused(
        "synthesize", *other, "--statistics", taken, *QUICK, "-o", tmp_path / "t"
    )
    assert "name one with --output" in refused("statistics", *named, "--data", f"cub:{data}", code=2)


def test_a_guide_is_for_its_own_classes_and_is_no_localizer(trained, tmp_path: Path) -> None:
    _, _, record = trained
    guide = record["guide"]["path"]
    stranger = tmp_path / "stranger.safetensors"
    window = preprocessing_for("cub:x", TINY.image_size)
    checkpoint.save(tiny_model(), ModelCard(TINY.name, ("x", "y", "z"), window, 0.1), stranger)
    assert "is of other classes or images" in refused("synthesize", stranger, "--guide", guide, "-o", tmp_path / "s")
    assert "is a guide and no localizer" in refused("synthesize", guide, "-o", tmp_path / "s")
    assert "is no guide" in refused("synthesize", "--guide", stranger, "-o", tmp_path / "s")
    assert "leave these options out" in refused(
        "synthesize", "--guide", guide, "--num-classes", 5, "-o", tmp_path / "s", code=2
    )


def test_the_bundled_guide_is_of_the_bundled_localizer_and_has_its_statistics(tmp_path: Path) -> None:
    guide = guide_of(BUNDLED)
    folder = tmp_path / "s"
    told = lctr("synthesize", BUNDLED, "--guide", guide, "--count", 4, "--steps", 1, "-o", folder, "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["missing"] == []
    assert {"bns", "distorted", "centralized"} <= set(read_sidecar(folder).metadata["final_losses"])
    assert read_sidecar(guide).metadata["top1"] > 95


@pytest.mark.parametrize("name", list(GUIDE_PRESETS))
def test_a_guide_takes_images_of_any_size(name: str) -> None:
    guide = Guide(GUIDE_PRESETS[name], 5).eval()
    with torch.inference_mode():
        assert guide(torch.zeros(2, 3, 33, 33)).shape == (2, 5)


def test_larger_images_have_the_larger_guide() -> None:
    assert [guide_preset_for(size).name for size in (16, 112, 224)] == ["guide-nano", "guide-nano", "guide-small"]
    assert sum(value.numel() for value in Guide(GUIDE_PRESETS["guide-nano"], 12).state_dict().values()) * 4 < 1e6
