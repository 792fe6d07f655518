import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny_vit import LAYERS, VIEW, labelled_images, teacher, tiny_vit

from calib import statistics
from calib.moments import Moments
from calib.observation import frozen, observing
from calib.statistics import class_separation, collect, well_separated
from toolchain import artifacts
from toolchain.artifacts import sidecar_of
from toolchain.errors import ArtifactError, DataError, ModelError, UsageError


def batched(images, labels, size):
    return list(zip(images.split(size), labels.split(size), strict=True))


def tokens_of(model, images):
    with frozen(model), torch.no_grad(), observing(model, VIEW) as observation:
        model(images.float())
        return observation.take()


def hooks_of(model):
    return sum(len(m._forward_pre_hooks) for m in model.modules())


# Collection


def test_collect_equals_the_definition():
    model, (images, labels) = tiny_vit(), labelled_images(10)
    found = collect(teacher(model), VIEW, batched(images, labels, 7))
    for layer, tokens in zip(LAYERS, tokens_of(model, images), strict=True):
        tokens = tokens.double()
        assert_close(found.overall[layer], tokens.flatten(0, 1).mean(0), tokens.flatten(0, 1).var(0, correction=0))
        if layer in found.centers:
            for row, label in enumerate(found.population.classes):
                own = tokens[labels == label]
                center, spread = found.centers[layer].center, found.centers[layer].spread
                pooled = own.flatten(0, 1)
                assert_close(
                    Moments(center.mean[row], center.variance[row]), pooled.mean(0), pooled.var(0, correction=0)
                )
                assert_close(
                    Moments(spread.mean[row], spread.variance[row]),
                    own.mean(1).std(0, correction=0),
                    own.var(1, correction=0).std(0, correction=0),
                )


def assert_close(moments, mean, variance):
    torch.testing.assert_close(moments.mean, mean.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.variance, variance.float(), rtol=1e-4, atol=1e-5)


def test_batching_changes_nothing():
    model, (images, labels) = tiny_vit(), labelled_images(10)
    one = collect(teacher(model), VIEW, [(images, labels)])
    many = collect(teacher(model), VIEW, iter(batched(images, labels, 4)))
    assert one.population == many.population
    for layer in LAYERS:
        torch.testing.assert_close(one.overall[layer], many.overall[layer], rtol=1e-5, atol=1e-6)


def test_collect_leaves_the_model_alone_and_counts_batches():
    model, (images, labels) = tiny_vit(), labelled_images(8)
    calls = []
    collect(teacher(model), VIEW, batched(images, labels, 8), progress=lambda d, n, note="": calls.append((d, n)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert model.training
    assert hooks_of(model) == 0


def test_a_small_class_gets_no_center_and_is_named():
    images, labels = labelled_images(10)
    labels = torch.where((labels == 2) & (torch.arange(30) >= 27), 3, labels)
    labels = torch.where((labels == 1) & (torch.arange(30) < 24), 4, labels)
    # class 0: 10 images, 1: 2, 2: 9, 3: 1, 4: 8
    found = collect(teacher(classes=5), VIEW, [(images, labels)], min_images=3)
    assert found.population.counts == (10, 2, 9, 1, 8)
    assert found.population.classes == (0, 2, 4)
    assert found.population.pooled == (1, 3)
    assert found.population.left_out == ()
    assert all(len(c.center.mean) == 3 for c in found.centers.values())


def test_a_single_image_cannot_be_had_by_subtraction():
    model, (images, labels) = tiny_vit(), labelled_images(8)
    stranger = torch.full((1, 3, 16, 16), 9.0)
    found = collect(teacher(model, 4), VIEW, [(images, labels), (stranger, torch.tensor([3]))])
    assert found.population.left_out == (3,)
    without = collect(teacher(model, 4), VIEW, [(images, labels)])
    assert all(torch.equal(found.overall[layer].mean, without.overall[layer].mean) for layer in LAYERS)


def test_too_few_images_and_labels_out_of_range():
    images, labels = labelled_images(2)
    with pytest.raises(DataError, match="has 6 images, but statistics need at least 8"):
        collect(teacher(), VIEW, [(images, labels)])
    with pytest.raises(DataError, match="has 0 images"):
        collect(teacher(), VIEW, [])
    with pytest.raises(DataError, match=r"labels \[2\] are not among the model's 2 classes"):
        collect(teacher(classes=2), VIEW, [(images, labels)])
    with pytest.raises(UsageError, match="min_images is 1"):
        collect(teacher(), VIEW, [(images, labels)], min_images=1)


def test_undefined_tokens_are_an_error():
    images, labels = labelled_images(8)
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"'blocks\.0\.norm1' received infinite or undefined values"):
        collect(teacher(), VIEW, [(images, labels)])


def test_it_is_counted_what_the_network_recognizes():
    images, labels = labelled_images(8)
    model = teacher(classifier=lambda model, images: model(images) * 0 + torch.tensor([0.0, 1.0, 0.0]))
    population = collect(model, VIEW, batched(images, labels, 7)).population
    assert population.recognized == (0, 8, 0)
    assert population.mistaken == (0, 2)


# Separation


def test_class_separation_by_hand():
    center = torch.tensor([[0.0], [2.0], [10.0]], dtype=torch.float64)
    spread = torch.full((3, 1), 0.75**0.5, dtype=torch.float64)
    counts = torch.full((3,), 4.0, dtype=torch.float64)
    # a = 0.75 * 4/3 = 1; error of a center 1/4; nearest, corrected: 4 - 0.5, 4 - 0.5, 64 - 0.5
    expected = (3.5 / 4.5 + 3.5 / 4.5 + 63.5 / 64.5) / 3
    assert class_separation(center, spread, counts) == pytest.approx(expected)


def test_classes_that_do_not_differ_are_not_separated():
    random = torch.Generator().manual_seed(0)
    images = torch.randn(2, 10, 400, generator=random, dtype=torch.float64)
    found = class_separation(images.mean(1), images.std(1, correction=0), torch.full((2,), 10.0, dtype=torch.float64))
    assert found == pytest.approx(0, abs=0.03)


def test_separation_of_points_without_spread():
    counts = torch.full((2,), 2.0)
    assert class_separation(torch.tensor([[0.0], [1.0]]), torch.zeros(2, 1), counts) == 1
    assert class_separation(torch.zeros(2, 1), torch.zeros(2, 1), counts) == 0


@pytest.mark.parametrize(
    ("separation", "chosen"),
    [
        ({"a": 0.1, "b": 0.39, "c": 0.4, "d": 0.8}, ("c", "d")),
        ({"a": -0.1, "b": 0.0}, ()),
        ({}, ()),
    ],
)
def test_layers_are_chosen_by_separation(separation, chosen):
    assert well_separated(separation) == chosen


def test_one_class_has_no_separation():
    images, labels = labelled_images(8)
    found = collect(teacher(), VIEW, [(images, labels * 0)])
    assert found.separation == {}
    assert found.centers == {}


# File


@pytest.fixture
def saved(tmp_path: Path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"weights")
    images, labels = labelled_images(10)
    found = collect(teacher(), VIEW, [(images, labels)])
    path = tmp_path / "statistics.safetensors"
    statistics.save(found, path, "abc", parameters={"min_images": 8}, inputs={"model": model})
    return found, path, model


def test_round_trip(saved):
    found, path, model = saved
    back = statistics.load(path, "abc", "the model")
    assert back.population == found.population
    assert back.separation == found.separation
    assert list(back.overall) == list(LAYERS)
    assert list(back.centers) == list(found.centers) != []
    for layer in LAYERS:
        assert torch.equal(back.overall[layer].variance, found.overall[layer].variance)
    for layer in found.centers:
        assert torch.equal(back.centers[layer].center.mean, found.centers[layer].center.mean)
        assert torch.equal(back.centers[layer].spread.variance, found.centers[layer].spread.variance)
    record = json.loads(sidecar_of(path).read_text())
    assert record["inputs"]["model"]["sha256"] == artifacts.sha256_of(model)
    assert record["metadata"]["population"]["counts"] == [10, 10, 10]


def test_statistics_of_the_first_version_are_read(saved, monkeypatch):
    found, path, _ = saved
    old = {name: value for name, value in dataclasses.asdict(found.population).items() if name != "recognized"}
    monkeypatch.setattr(statistics, "asdict", lambda population: old)
    statistics.save(found, path, "abc")
    assert statistics.load(path, "abc", "the model").population == dataclasses.replace(
        found.population, recognized=None
    )


def test_statistics_of_another_model_are_refused(saved):
    with pytest.raises(ArtifactError, match="of another model than my guide"):
        statistics.load(saved[1], "abd", "my guide")


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_a_damaged_file_is_refused(saved, damage):
    _, path, _ = saved
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match="sha256 differs"):
        statistics.load(path, "abc", "the model")


def test_a_sealed_file_that_holds_no_statistics_is_refused(saved):
    _, path, _ = saved
    path.write_bytes(b"no tensors")
    artifacts.seal(path, statistics.KIND)
    with pytest.raises(ArtifactError, match="no statistics file of this version"):
        statistics.load(path, "abc", "the model")
