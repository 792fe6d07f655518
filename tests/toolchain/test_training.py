"""What a training step sees, and what the loop makes of it."""

from dataclasses import fields, replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import (
    PLAIN,
    SCHEDULE,
    alone,
    same_weights,
    tiny_batches,
    tiny_model,
    tiny_pool,
    trained,
    untimed,
)

from toolchain.data.dataset import Sample
from toolchain.data.pool import Pool, pool_from_dataset
from toolchain.errors import TrainingError, UsageError
from toolchain.model.lctr import Cues, Halfway
from toolchain.training.batches import Batch, CachedBatches, ImageBatches, Share
from toolchain.training.cache import frozen_outputs
from toolchain.training.loop import train
from toolchain.training.mixing import CutMix
from toolchain.training.recipes import Schedule
from toolchain.training.sources import PoolSource

pytestmark = pytest.mark.usefixtures("one_thread")


def one_epoch(
    batches: ImageBatches | CachedBatches, seed: int = 0, share: Share | None = None, first: int = 0
) -> list[Batch]:
    return list(batches.epoch(torch.Generator().manual_seed(seed), share or Share(), first))


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


def test_training_learns(tmp_path):
    model = tiny_model()
    logs = train(
        alone(),
        model,
        tiny_batches(),
        Schedule(epochs=30, learning_rate=1e-2),
        state=tmp_path / "state",
        identity="run",
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


@pytest.mark.parametrize("accumulate", [2, 4])
def test_passes_add_up_to_the_whole_batch(tmp_path, accumulate):
    schedule = replace(SCHEDULE, bf16=False)
    whole, logs = trained(tmp_path / "whole", schedule, tiny_model(drop_path=0))
    parts, part_logs = trained(tmp_path / "parts", replace(schedule, accumulate=accumulate), tiny_model(drop_path=0))
    # Sums in another order: float32 rounding, and what Adam makes of it.
    assert [log.loss for log in part_logs] == pytest.approx([log.loss for log in logs], rel=1e-4)
    assert [log.accuracy for log in part_logs] == [log.accuracy for log in logs]
    images = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(parts(images).logits, whole(images).logits, rtol=1e-2, atol=1e-3)


def test_the_moving_average_by_hand(tmp_path):
    decay, seen = 0.5, []
    model = tiny_model()

    def remember(done: int, total: int, note: str = "") -> None:
        seen.append(model.CDM.weight.detach().clone())

    trained(tmp_path / "state", replace(SCHEDULE, ema=decay), model, progress=remember)
    average = seen[0]
    for weight in seen[1:]:
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(model.CDM.weight, average)
    assert not torch.equal(model.CDM.weight, seen[-1])


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


def test_repeated_images_share_a_batch_and_leave_the_epoch_as_long():
    grey = np.arange(12, dtype=np.uint8) * 20
    pool = Pool(np.broadcast_to(grey[:, None, None, None], (12, 16, 16, 3)), np.arange(12) % 3)
    batches = replace(tiny_batches(pool=pool, batch_size=6), repeats=3)
    shown = [(b.inputs[:, 0, 0, 0] * 255 / 20).round().int().tolist() for b in one_epoch(batches)]
    assert len(shown) == batches.steps == 2
    for batch in shown:
        assert batch == [batch[0]] * 3 + [batch[3]] * 3
    assert len({*shown[0], *shown[1]}) == 4


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


def test_images_are_mixed_by_whole_patches():
    grey = np.arange(3, dtype=np.uint8) * 51
    pool = Pool(np.broadcast_to(grey[:, None, None, None], (3, 16, 16, 3)), np.arange(3))
    (batch,) = one_epoch(tiny_batches(CutMix(1, (0.5, 0.5)), pool, batch_size=3))
    for image in range(3):
        patches = batch.inputs[image, 0].reshape(2, 8, 2, 8).transpose(1, 2).reshape(4, 64)
        assert (patches == patches[:, :1]).all()
        own, other = int(batch.labels[image]), int(batch.labels[image - 1])
        assert sorted((patches[:, 0] * 5).round().int().tolist()) == sorted([own, own, own, other])


def cached_batches(cutmix: CutMix, tokens: bool) -> CachedBatches:
    """Three images, each token of which says which image it is of."""
    number = torch.arange(3.0).reshape(1, 3, 1, 1, 1)
    attention = number[..., 0].expand(1, 3, 2, 2)
    cached = (
        Halfway(number[..., 0].expand(1, 3, 5, 8).half(), attention)
        if tokens
        else Cues(number.expand(1, 3, 8, 2, 2).half(), attention)
    )
    return CachedBatches(cached, torch.arange(3), 3, cutmix, 3)


@pytest.mark.parametrize("tokens", [True, False])
def test_cached_output_is_mixed_by_token(tokens):
    (batch,) = one_epoch(cached_batches(CutMix(1, (0.5, 0.5)), tokens))
    for image in range(3):
        own, other = batch.labels[image], batch.labels[image - 1]
        shown = batch.inputs.class_attention[image].flatten().tolist()
        assert sorted(shown) == sorted([own, own, own, other])
        if tokens:
            assert batch.inputs.tokens[image, :, 0].tolist() == [0.75 * own + 0.25 * other, *shown]
        else:
            assert batch.inputs.features[image, 0].flatten().tolist() == shown


@pytest.mark.parametrize("frozen_blocks", [1, 2])
def test_cached_output_goes_on_as_the_image_and_its_mirror_image_would(frozen_blocks):
    model = tiny_model()
    pool = tiny_pool(5)
    cached = frozen_outputs(model, frozen_blocks, PoolSource(pool, PLAIN), batch_size=2)
    images = torch.from_numpy(PLAIN.normalize(pool.images))
    with torch.no_grad():
        for view, shown in enumerate((images, images.flip(-1))):
            parts = type(cached)(*(part[view].float() for part in cached))
            found = model.cues_from(parts, frozen_blocks) if isinstance(parts, Halfway) else parts
            expected = model.cues(shown)
            torch.testing.assert_close(found.features, expected.features, rtol=2e-3, atol=4e-3)
            torch.testing.assert_close(found.class_attention, expected.class_attention, rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_in_memory_is_refused_before_it_is_computed(tmp_path, monkeypatch):
    little = tmp_path / "meminfo"
    little.write_text("MemTotal: 8 kB\nMemAvailable: 1 kB\n")
    monkeypatch.setattr("toolchain.training.cache.MEMORY", little)
    with pytest.raises(UsageError, match=r"1 frozen blocks for 2 views of 400 images takes .* lower --views"):
        frozen_outputs(tiny_model(), 1, PoolSource(tiny_pool(400), PLAIN))


@given(
    seed=st.integers(0, 2**31),
    world=st.sampled_from([1, 2, 3]),
    accumulate=st.sampled_from([1, 2]),
    first=st.integers(0, 2),
)
def test_shares_of_processes_and_passes_put_together_are_the_batch(seed, world, accumulate, first):
    batches = tiny_batches(CutMix(0.7), tiny_pool(24), batch_size=12)
    shares = [one_epoch(batches, seed, Share(rank, world, accumulate), first) for rank in range(world)]
    wholes = one_epoch(batches, seed)[first:]
    assert {len(passes) for passes in shares} == {len(wholes) * accumulate}
    for step, whole in enumerate(wholes):
        parts = [s[step * accumulate + turn] for turn in range(accumulate) for s in shares]
        for name in ("inputs", "targets", "labels"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UsageError, match=r"--batch-size 4 cannot be shared by 3 processes in 2 passes.*multiple of 6"):
        one_epoch(tiny_batches(), share=Share(0, 3, 2))


def test_epochs_are_logged_with_the_rate_they_end_at(tmp_path):
    _, logs = trained(tmp_path / "state", Schedule(epochs=2, learning_rate=1e-2, warmup_epochs=1))
    assert [log.learning_rate for log in logs] == pytest.approx([1e-2, 1e-4])
    assert untimed(logs)[0].top1 is None
