import dataclasses
import math

import numpy as np
import pytest
import torch
from tiny_vit import CLASSES, LAYERS, MEAN, SIZE, STD, TinyViT, labelled_images, logits, tiny_vit

from calib.generator import GeneratorConfig
from calib.statistics import collect
from calib.synthesis import LossWeights, SynthesisConfig, synthesize
from toolchain.errors import ModelError, TrainingError, UsageError

QUICK = SynthesisConfig(steps=6, batch=4, generator=GeneratorConfig(widths=(8, 8)))


@pytest.fixture(scope="module")
def statistics():
    images, labels = labelled_images(10)
    return collect(tiny_vit(), LAYERS, [(images, labels)], CLASSES)


def make(statistics, config=QUICK, *, model=None, count=7, seed=0, **options):
    options = {"image_size": SIZE, "mean": MEAN, "std": STD, "logits": logits, **options}
    return synthesize(model or tiny_vit(), statistics, config, count=count, seed=seed, **options)


def test_shapes_and_even_labels(statistics):
    made = make(statistics)
    assert made.images.shape == (7, SIZE, SIZE, 3)
    assert made.images.dtype == np.uint8
    assert sorted(np.bincount(made.labels).tolist()) == [2, 2, 3]
    assert 0 <= made.agreement <= 1
    assert list(made.deviation_ratio) == list(LAYERS)
    assert made.missing == ()


def test_fewer_images_than_harvests(statistics):
    assert len(make(statistics, count=2).images) == 2


def test_same_seed_same_bytes_and_the_global_random_state_is_untouched(statistics):
    before = torch.get_rng_state()
    first = make(statistics)
    torch.randn(3)
    torch.set_rng_state(before)
    second = make(statistics)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.images.tobytes() == second.images.tobytes()
    assert first.losses == second.losses
    assert make(statistics, seed=1).images.tobytes() != first.images.tobytes()


def test_the_teacher_is_left_as_it_was(statistics):
    model = tiny_vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make(statistics, model=model)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_the_total_is_the_weighted_sum(statistics):
    weights = LossWeights(random_class=2, single_class=3, bns=5, distorted=7, centralized=11)
    losses = make(statistics, dataclasses.replace(QUICK, weights=weights)).losses
    expected = sum(getattr(weights, name) * losses[name][0] for name in losses if name != "total")
    assert losses["total"][0] == pytest.approx(expected, rel=1e-5)
    assert set(losses) == {"total", "random_class", "single_class", "bns", "distorted", "centralized"}
    assert all(len(values) == QUICK.steps for values in losses.values())


def test_training_lowers_the_statistics_loss(statistics):
    config = dataclasses.replace(QUICK, steps=80, batch=8, learning_rate=1e-2)
    losses = make(statistics, config).losses
    assert np.mean(losses["bns"][-10:]) < 0.5 * np.mean(losses["bns"][:3])


def test_without_statistics_only_priors_remain_and_it_is_said():
    made = make(None)
    assert set(made.losses) == {"total", "random_class", "single_class", "total_variation"}
    assert made.deviation_ratio == {}
    assert "no statistics" in made.missing[0]


def test_classes_without_a_center_are_left_out_of_the_center_losses():
    images, labels = labelled_images(10)
    few = labels != 2
    few[labels.eq(2).nonzero()[:3]] = True
    found = collect(tiny_vit(), LAYERS, [(images[few], labels[few])], CLASSES)
    assert found.population.classes == (0, 1)
    made = make(found, dataclasses.replace(QUICK, steps=20))
    defined = [not math.isnan(v) for v in made.losses["distorted"]]
    assert 0 < sum(defined) < 20
    assert made.missing == ("1 classes without a center: left out of L_D and L_C",)


def test_progress_counts_steps(statistics):
    calls = []
    make(statistics, progress=lambda done, total, note="": calls.append((done, total, note)))
    assert [c[:2] for c in calls] == [(i, 6) for i in range(1, 7)]
    assert calls[0][2].startswith("loss ")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": 0}, "steps is 0"), ({"batch": 1}, "batch is 1"), ({"harvests": 0}, "harvests is 0")],
)
def test_impossible_configurations(statistics, change, message):
    with pytest.raises(UsageError, match=message):
        make(statistics, dataclasses.replace(QUICK, **change))


def test_no_images_asked_for(statistics):
    with pytest.raises(UsageError, match="count is 0"):
        make(statistics, count=0)


def test_statistics_of_another_architecture_are_refused(statistics):
    with pytest.raises(ModelError, match="know 3 classes, the model 5"):
        make(statistics, model=TinyViT(classes=5))
    with pytest.raises(ModelError, match=r"'blocks\.0\.norm1' have 8 channels, the model has 12"):
        make(statistics, model=TinyViT(dim=12))


def test_divergence_is_an_error(statistics):
    with pytest.raises(TrainingError, match="loss is nan at step 1"):
        make(statistics, logits=lambda model, images: model(images) * math.nan)
