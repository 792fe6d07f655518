from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_cnn import tiny_cnn
from tiny_vit import VIEW, labelled_images, teacher

from calib.alignment import Alignment, batchnorm_alignment, token_alignment
from calib.batchnorm import batchnorm_view, deep_layers
from calib.fdda import FAST, PAPER, Fdda, LossWeights
from calib.generator import GeneratorConfig
from calib.moments import image_moments
from calib.observation import observing
from calib.refinement import Refinement
from calib.statistics import collect
from calib.synthesis import synthesize
from toolchain.errors import TrainingError, UsageError

QUICK = replace(FAST, steps=6, batch=4, generator=GeneratorConfig(100, (8, 8), 2, contrast=True))


def of_tokens(images=None, labels=None):
    found = collect(teacher(), VIEW, [labelled_images(10) if images is None else (images, labels)])
    return token_alignment(VIEW, found, torch.device("cpu"))


def of_batchnorms(model):
    view = batchnorm_view(model)
    found = collect(teacher(model), view, [labelled_images(10)], chosen=lambda _: deep_layers(view.layers))
    # Which classes an untrained network recognizes is chance: here, all.
    known = replace(found, population=replace(found.population, recognized=(10, 10, 10)))
    return batchnorm_alignment(model, known, relative=False)


@pytest.fixture(scope="module")
def tokens():
    return of_tokens()


@pytest.fixture
def recognizing(monkeypatch):
    """An untrained network mistakes classes by chance; here none."""
    monkeypatch.setattr("calib.statistics.RECOGNIZED_SHARE", 0)


def make(alignment, config=QUICK, model=None, count=7, **changes):
    return synthesize(Fdda(config, alignment), teacher(model, **changes), count=count, seed=0)


def test_the_published_constants():
    # spec/fdda.md, "The method, as published".
    assert (PAPER.steps, PAPER.batch, PAPER.learning_rate, PAPER.betas) == (400 * 200, 16, 1e-3, (0.5, 0.999))
    assert [share * 400 for share in PAPER.decay_at] == [100, 200, 300]
    assert PAPER.decay == 0.1
    # Every image that it draws is used.
    assert PAPER.candidates == 1
    assert PAPER.refinement is None
    weights = PAPER.weights
    assert (weights.random_class, weights.bns, weights.distorted) == (0.5, 0.2, 0.9)
    assert (weights.centralized, weights.single_class) == (0.01, 0.5)


def test_fewer_images_than_harvests(tokens):
    assert len(make(tokens, count=2).images) == 2


def test_candidates_bring_images_nearer(tokens):
    def distance(candidates):
        made = make(tokens, replace(QUICK, candidates=candidates), count=12)
        known = teacher()
        with torch.no_grad(), observing(known.model.eval(), VIEW) as observation:
            known.logits(known.normalized(made.images))
            return float(tokens.distance(observation.take(), image_moments).mean())

    assert distance(8) < distance(1)


def test_refined_images_are_nearer_and_more_surely_of_their_class(tokens):
    def judged(refinement):
        made = make(tokens, replace(QUICK, refinement=refinement), count=12)
        known = teacher()
        with torch.no_grad(), observing(known.model.eval(), VIEW) as observation:
            logits = known.logits(known.normalized(made.images))
            entropy = torch.nn.functional.cross_entropy(logits, torch.from_numpy(made.labels))
            return float(tokens.distance(observation.take(), image_moments).mean()), float(entropy), made.losses

    distance, entropy, curve = judged(Refinement(steps=20, learning_rate=0.1))
    plain_distance, plain_entropy, plain_curve = judged(None)
    assert distance < plain_distance
    assert entropy < plain_entropy
    # The generator is the same: refinement comes after it.
    assert curve == plain_curve


def test_progress_goes_on_through_refinement(tokens):
    told = []
    config = replace(QUICK, refinement=Refinement(steps=3, learning_rate=0.1, batch=4))
    synthesize(
        Fdda(config, tokens),
        teacher(),
        count=7,
        seed=0,
        progress=lambda done, total, note="": told.append((done, total)),
    )
    # Six steps of the generator, then three for each of two batches.
    assert told == [(step, 12) for step in range(1, 13)]


def test_nothing_is_refined_that_nothing_could_judge():
    assert np.array_equal(make(None).images, make(None, replace(QUICK, refinement=None)).images)


def test_no_candidate_is_drawn_that_nothing_could_judge():
    assert np.array_equal(make(None).images, make(None, replace(QUICK, candidates=1)).images)


def test_classes_take_turns(tokens, monkeypatch):
    labels = []
    losses = Alignment.losses
    monkeypatch.setattr(Alignment, "losses", lambda *given: labels.append(given[3]) or losses(*given))
    make(tokens, replace(QUICK, steps=6))
    every = list(tokens.classes)
    assert len(every) > 1
    assert [sorted(labels[k : k + len(every)]) for k in range(0, 6, len(every))] == [every] * (6 // len(every))


@pytest.mark.parametrize("apart", [False, True])
def test_the_total_is_the_weighted_sum(recognizing, apart):
    weights = LossWeights(random_class=2, single_class=3, bns=5, distorted=7, centralized=11)
    losses = make(of_batchnorms(model := tiny_cnn()), replace(QUICK, weights=weights, apart=apart), model).losses
    expected = sum(getattr(weights, name) * losses[name][0] for name in losses if name != "total")
    assert losses["total"][0] == pytest.approx(expected, rel=1e-5)
    assert set(losses) == {"total", "random_class", "single_class", "bns", "distorted", "centralized"}
    assert all(len(values) == QUICK.steps for values in losses.values())


def test_training_lowers_the_statistics_loss(tokens):
    losses = make(tokens, replace(QUICK, steps=60, batch=8)).losses
    assert np.mean(losses["bns"][-10:]) < 0.6 * np.mean(losses["bns"][:3])


def test_images_take_on_the_running_statistics():
    model = tiny_cnn()
    with torch.no_grad():
        # Of images half as bright and with a fifth of the contrast.
        model.train()(labelled_images(20)[0] * 0.2 - 1)
    weights = LossWeights(random_class=0, single_class=0, bns=1)
    made = make(
        batchnorm_alignment(model, None, relative=False), replace(QUICK, steps=60, batch=8, weights=weights), model
    )
    assert np.mean(made.losses["bns"][-10:]) < 0.3 * made.losses["bns"][0]


def test_without_statistics_only_priors_remain_and_it_is_said():
    made = make(None)
    assert set(made.losses) == {"total", "random_class", "single_class", "total_variation"}
    assert made.deviation_ratio == {}
    assert "no statistics" in made.missing[0]


def test_a_batch_of_one_class_is_of_a_class_that_has_a_center(recognizing):
    images, labels = labelled_images(10)
    few = labels != 2
    few[labels.eq(2).nonzero()[:3]] = True
    alignment = of_tokens(images[few], labels[few])
    assert alignment.classes == (0, 1)
    made = make(alignment, replace(QUICK, steps=20, candidates=1))
    # Were class 2 drawn, its step would have no such loss, and the terms of the steps would differ.
    assert np.isfinite(made.losses["distorted"]).all()
    assert made.missing == ("1 classes without a center: left out of L_D and L_C",)
    assert 2 in made.labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch": 1}, "batch is 1"),
        ({"harvests": 0}, "harvests is 0"),
        ({"candidates": 0}, "candidates is 0"),
    ],
)
def test_impossible_configurations(change, message):
    with pytest.raises(UsageError, match=message):
        replace(QUICK, **change)


def test_divergence_is_an_error(tokens):
    with pytest.raises(TrainingError, match="loss is nan at step 1"):
        make(tokens, classifier=lambda model, images: model(images) * torch.nan)
