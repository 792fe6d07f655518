"""A localizer of two tiny blocks on 16 x 16 pixels: an epoch takes milliseconds."""

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from toolchain.data.dataset import Sample
from toolchain.data.pool import Pool, pool_from_dataset
from toolchain.errors import TrainingError, UsageError
from toolchain.model.lctr import Cues, Lctr
from toolchain.model.presets import Preset
from toolchain.preprocessing import Preprocessing
from toolchain.training.batches import Batch, CueBatches, CutMix, ImageBatches, cached_cues
from toolchain.training.loop import EpochLog, Schedule, train

TINY = Preset("test", image_size=16, patch_size=8, dim=8, depth=2, heads=2)
PLAIN = Preprocessing(16, 16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
UNMIXED = CutMix(probability=0)
SCHEDULE = Schedule(epochs=3, learning_rate=1e-2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than these sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_model() -> Lctr:
    torch.manual_seed(0)
    return Lctr(TINY, num_classes=3, drop_path=0.3)


def tiny_pool(count: int = 12) -> Pool:
    """Class c is bright in channel c."""
    labels = np.arange(count) % 3
    images = np.random.default_rng(0).integers(0, 100, (count, 16, 16, 3), dtype=np.uint8)
    images[np.arange(count), :, :, labels] += 120
    return Pool(images, labels)


def tiny_batches(cutmix: CutMix = UNMIXED, pool: Pool | None = None, batch_size: int = 4) -> ImageBatches:
    return ImageBatches(pool or tiny_pool(), PLAIN, batch_size, cutmix)


def trained(
    state: Path, schedule: Schedule = SCHEDULE, model: Lctr | None = None, **others
) -> tuple[Lctr, list[EpochLog]]:
    model = model or tiny_model()
    logs = train(model, tiny_batches(CutMix()), schedule, state=state, **{"identity": "run"} | others)
    return model, logs


def one_epoch(batches: ImageBatches | CueBatches, model: Lctr | None = None, seed: int = 0) -> list[Batch]:
    plain = torch.autocast("cpu", torch.bfloat16, enabled=False)
    with torch.no_grad():
        return list(batches.epoch((model or tiny_model()).eval(), plain, torch.Generator().manual_seed(seed)))


def same_weights(first: Lctr, second: Lctr) -> bool:
    others = second.state_dict()
    return all(torch.equal(value, others[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("step", [4, 5, 8])
def test_an_interrupted_run_resumes_into_the_same_weights(tmp_path, step):
    def interrupt(done: int, total: int, note: str = "") -> None:
        if done == step:
            raise KeyboardInterrupt

    whole, logs = trained(tmp_path / "whole.state")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut.state", progress=interrupt)
    resumed, resumed_logs = trained(tmp_path / "cut.state")
    assert same_weights(whole, resumed)
    assert [replace(log, seconds=0) for log in resumed_logs] == [replace(log, seconds=0) for log in logs]


def test_a_finished_run_is_not_repeated(tmp_path):
    whole, _ = trained(tmp_path / "state")
    steps = []
    again, logs = trained(tmp_path / "state", progress=lambda done, total, note="": steps.append(done))
    assert same_weights(whole, again)
    assert (len(logs), steps) == (3, [])


def test_another_seed_gives_other_weights(tmp_path):
    first, _ = trained(tmp_path / "first")
    second, _ = trained(tmp_path / "second", replace(SCHEDULE, seed=1))
    assert not same_weights(first, second)


@pytest.mark.parametrize("others", [{"identity": "other data"}, {"schedule": replace(SCHEDULE, label_smoothing=0.1)}])
def test_the_state_of_another_run_is_not_continued(tmp_path, others):
    trained(tmp_path / "state")
    with pytest.raises(UsageError, match="belongs to a run with other options or data"):
        trained(tmp_path / "state", **others)


@pytest.mark.parametrize("content", [b"", b"no state"])
def test_what_is_no_state_is_not_continued(tmp_path, content):
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(UsageError, match="is no training state"):
        trained(tmp_path / "state")


def test_training_learns(tmp_path):
    model = tiny_model()
    logs = train(
        model, tiny_batches(), Schedule(epochs=30, learning_rate=1e-2), state=tmp_path / "state", identity="run"
    )
    assert logs[-1].loss < 0.5 * logs[0].loss
    assert logs[-1].accuracy > 0.9
    assert not model.training


def test_frozen_parameters_stay(tmp_path):
    model = tiny_model()
    model.blocks.requires_grad_(False)
    trained(tmp_path / "state", model=model)
    fresh = tiny_model()
    assert torch.equal(model.blocks[1].mlp.fc1.weight, fresh.blocks[1].mlp.fc1.weight)
    assert not torch.equal(model.CDM.weight, fresh.CDM.weight)


def test_dead_routing_is_an_error(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.CDM._routing_fn_two.fc.bias.fill_(-50)
    with pytest.raises(TrainingError, match=r"routing died in epoch 0, step 0.*--routing-rate \(0\.01\)"):
        trained(tmp_path / "state", model=model)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_no_number_is_an_error(tmp_path, value):
    model = tiny_model()
    with torch.no_grad():
        model.CDM.bias[0] = value
    with pytest.raises(TrainingError, match=r"loss became nan in epoch 0, step 0: lower --learning-rate \(0\.01\)"):
        trained(tmp_path / "state", model=model)


@pytest.mark.parametrize(
    ("epochs_done", "factor"), [(0.0, 0.0), (0.5, 0.25), (1.0, 0.5), (2.0, 1.0), (6.0, 0.505), (10.0, 0.01)]
)
def test_learning_rate_by_hand(epochs_done, factor):
    schedule = Schedule(epochs=10, learning_rate=1.0, warmup_epochs=2)
    assert schedule.rate(epochs_done) == pytest.approx(factor)


class Boxed:
    """Three images whose boxes nobody should look at."""

    class_names = ("a", "b", "c")

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.full((16, 16, 3), index, np.uint8), index, ((float("nan"),) * 4,), str(index))


def test_boxes_never_reach_the_pool():
    assert {field.name for field in fields(Pool)} == {"images", "labels"}
    pool = pool_from_dataset(Boxed())
    assert pool.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert pool.labels.tolist() == [0, 1, 2]


def test_an_epoch_shows_each_image_once_in_another_order():
    batches = tiny_batches(batch_size=4)
    assert batches.steps == 3
    orders = [[b.labels.tolist() for b in one_epoch(batches, seed=seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(chain(*orders[0])) == [0] * 4 + [1] * 4 + [2] * 4


def test_an_incomplete_batch_is_left_out():
    assert tiny_batches(pool=tiny_pool(11)).steps == len(one_epoch(tiny_batches(pool=tiny_pool(11)))) == 2


def test_labels_are_shared_by_visible_area():
    # On a grid of 2 x 2 a rectangle of half the side is one token of four.
    (batch,) = one_epoch(tiny_batches(CutMix(1, (0.5, 0.5)), tiny_pool(3), batch_size=3))
    own = torch.nn.functional.one_hot(batch.labels, 3)
    assert batch.targets.tolist() == (0.75 * own + 0.25 * own.roll(1, 0)).tolist()


def test_an_image_covered_wholly_has_the_other_label():
    (batch,) = one_epoch(tiny_batches(CutMix(1, (1, 1)), tiny_pool(3), batch_size=3))
    assert batch.targets.argmax(1).tolist() == batch.labels.tolist()
    assert batch.targets.max() == 1


def test_unmixed_targets_are_one_hot():
    (batch,) = one_epoch(tiny_batches(pool=tiny_pool(3), batch_size=3))
    assert batch.targets.tolist() == torch.nn.functional.one_hot(batch.labels, 3).tolist()


@pytest.mark.parametrize("seed", range(8))
def test_a_rectangle_lies_in_a_corner(seed):
    mask = CutMix(1, (0.36, 0.65)).draw(14, torch.Generator().manual_seed(seed))
    rows, columns = (mask.any(axis).flatten() for axis in (1, 0))
    for shown in (rows, columns):
        assert 5 <= int(shown.sum()) <= 9
        assert shown[0] != shown[-1]
    assert int(mask.sum()) == int(rows.sum()) * int(columns.sum())


def test_cached_cues_are_those_of_the_image_and_of_its_mirror():
    model = tiny_model()
    pool = tiny_pool(5)
    cached = cached_cues(model, pool, PLAIN, batch_size=2)
    images = torch.from_numpy(PLAIN.normalize(pool.images))
    with torch.no_grad():
        for view, shown in enumerate((images, images.flip(-1))):
            cues = model.cues(shown)
            torch.testing.assert_close(cached.features[view].float(), cues.features, rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(cached.class_attention[view], cues.class_attention)


def test_cached_cues_are_mixed_by_token():
    features = torch.arange(3.0).reshape(1, 3, 1, 1, 1).expand(1, 3, 8, 2, 2).half()
    cues = Cues(features, features[:, :, 0].float())
    (batch,) = one_epoch(CueBatches(cues, torch.arange(3), 3, CutMix(1, (0.5, 0.5))))
    for image in range(3):
        own, other = batch.labels[image], batch.labels[image - 1]
        tokens = batch.cues.features[image, 0].flatten().tolist()
        assert sorted(tokens) == sorted([own, own, own, other])
        assert batch.cues.class_attention[image].flatten().tolist() == tokens


class Watched(Lctr):
    """Remembers the images it saw last."""

    def cues(self, images: torch.Tensor) -> Cues:
        self.seen = images
        return super().cues(images)


def test_images_are_mixed_by_whole_patches():
    grey = np.arange(3, dtype=np.uint8) * 51
    pool = Pool(np.broadcast_to(grey[:, None, None, None], (3, 16, 16, 3)), np.arange(3))
    model = Watched(TINY, num_classes=3)
    (batch,) = one_epoch(tiny_batches(CutMix(1, (0.5, 0.5)), pool, batch_size=3), model)
    for image in range(3):
        patches = model.seen[image, 0].reshape(2, 8, 2, 8).transpose(1, 2).reshape(4, 64)
        assert (patches == patches[:, :1]).all()
        own, other = int(batch.labels[image]), int(batch.labels[image - 1])
        assert sorted((patches[:, 0] * 5).round().int().tolist()) == sorted([own, own, own, other])
