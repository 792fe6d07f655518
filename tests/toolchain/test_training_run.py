"""Whole training runs on a handful of small images."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import RECIPE, TINY, cub_folder, run_on, tiny_model

from toolchain.card import ModelCard
from toolchain.data.dataset import Sample
from toolchain.data.sources import open_data, preprocessing_for
from toolchain.errors import UsageError
from toolchain.model import checkpoint
from toolchain.training.mixing import CutMix
from toolchain.training.recipes import Augmentation, Recipe, Schedule

FINETUNE = Recipe(
    Schedule(epochs=2, learning_rate=1e-2, layer_decay=0.5),
    batch_size=6,
    cutmix=CutMix(0.5),
    drop_path=0.1,
    augmentation=Augmentation(crop=(0.5, 1.0), operations=0, erasing=0.0),
    train_blocks=1,
    views=1,
)
STREAMED = replace(RECIPE, augmentation=Augmentation(), repeats=2, schedule=replace(RECIPE.schedule, epochs=1))

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_preset")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cub_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A checkpoint of the tiny preset, of other classes: its backbone is what it has to give."""
    path = tmp_path / "start.safetensors"
    window = preprocessing_for("cub:x", TINY.image_size)
    checkpoint.save(tiny_model(), ModelCard(TINY.name, ("x", "y", "z"), window, 0.1), path)
    return path


def table_of(output: Path) -> list[dict[str, str]]:
    with output.with_suffix(".log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_on_whole_augmented_images_leaves_a_checkpoint_and_its_table(data, tmp_path):
    output = tmp_path / "model.safetensors"
    trained = run_on(data, output, STREAMED)
    model, card = checkpoint.load(output)
    assert card.class_names == ("class0", "class1", "class2")
    assert card.tau == trained.validated.tau == trained.validated.evaluation.tau
    assert model.preset == TINY
    (row,) = table_of(output)
    assert float(row["loss"]) == trained.logs[0].loss
    assert row["top1"] == ""
    assert not output.with_name("model.safetensors.state").exists()


def test_the_last_block_is_trained_on_cached_views_and_the_first_stays(data, tmp_path, start):
    output = tmp_path / "model.safetensors"
    trained = run_on(data, output, FINETUNE, init=start)
    assert trained.started == "backbone"
    before, after = checkpoint.load(start)[0].state_dict(), checkpoint.load(output)[0].state_dict()
    moved = {
        name.split(".")[0] + "." + name.split(".")[1] for name in before if not torch.equal(before[name], after[name])
    }
    assert {"blocks.1", "norm.weight", "norm.bias"} <= moved
    assert not any(name.startswith(("blocks.0", "patch_embed", "pos_embed", "cls_token")) for name in moved)


def test_the_head_alone_is_trained_on_cached_cues(data, tmp_path, start):
    output = tmp_path / "model.safetensors"
    frozen = replace(FINETUNE, train_blocks=0, views=0, drop_path=0.0, schedule=Schedule(epochs=1, learning_rate=1e-2))
    run_on(data, output, frozen, init=start)
    before, after = checkpoint.load(start)[0].state_dict(), checkpoint.load(output)[0].state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} <= {
        name for name in before if name.startswith(checkpoint.HEAD)
    }


def test_evaluations_are_in_the_table_and_in_tensorboard(data, tmp_path):
    output = tmp_path / "model.safetensors"
    recipe = replace(STREAMED, schedule=replace(STREAMED.schedule, keep="best", evaluate_every=1))
    trained = run_on(data, output, recipe, tensorboard=tmp_path / "curves")
    (row,) = table_of(output)
    found = trained.validated.evaluation
    assert [float(row[key]) for key in ("top1", "gt_known_loc", "top1_loc", "tau")] == pytest.approx(
        [found.top1, found.gt_known_loc, found.top1_loc, found.tau]
    )
    (events,) = (tmp_path / "curves").iterdir()
    told = events.read_bytes()
    assert all(name.encode() in told for name in row if name != "epoch")


class Boxless:
    """A data set whose boxes nobody drew."""

    def __init__(self, data) -> None:
        self._data = data
        self.class_names = data.class_names

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Sample:
        return replace(self._data[index], boxes=())


def test_without_boxes_the_published_threshold_is_kept_and_top1_chooses(data, tmp_path, monkeypatch):
    def opened(spec, split, *others):
        found = open_data(spec, split, *others)
        return Boxless(found) if split == "val" else found

    monkeypatch.setattr("toolchain.training.run.open_data", opened)
    output = tmp_path / "model.safetensors"
    recipe = replace(STREAMED, tau=0.18, schedule=replace(STREAMED.schedule, keep="best", evaluate_every=1))
    trained = run_on(data, output, recipe)
    assert trained.validated.evaluation is None
    assert checkpoint.card_of(output).tau == trained.validated.tau == 0.18
    (row,) = table_of(output)
    assert float(row["top1"]) == pytest.approx(trained.validated.top1)
    assert row["top1_loc"] == row["tau"] == ""


@pytest.mark.parametrize(
    ("recipe", "others", "complaint"),
    [
        (FINETUNE, {}, "--train-blocks or --freeze-backbone without --init would freeze random weights"),
        (
            replace(FINETUNE, train_blocks=2),
            {"init": "start"},
            "--train-blocks 2 leaves none of tiny's 2 blocks frozen",
        ),
        (replace(RECIPE, batch_size=1000), {}, "21 training images do not fill one batch of 1000"),
        (RECIPE, {"device": "tpu"}, "--device tpu is unknown: give one of cpu, cuda"),
        (RECIPE, {"workers": -1}, "--workers -1 cannot be meant"),
        (replace(RECIPE, schedule=replace(RECIPE.schedule, accumulate=3)), {}, "--batch-size 4 cannot be shared by 1"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(recipe, others, complaint, data, tmp_path, start):
    before = set(tmp_path.iterdir())
    if "init" in others:
        others = {"init": start}
    with pytest.raises(UsageError) as error:
        run_on(data, tmp_path / "model.safetensors", recipe, **others)
    assert complaint in str(error.value)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_missed_at_once(data, tmp_path):
    with pytest.raises(UsageError, match="--device cuda needs an NVIDIA GPU and a CUDA build of torch"):
        run_on(data, tmp_path / "model.safetensors", device="cuda")
