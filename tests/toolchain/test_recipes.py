"""The recipes, what may be changed in them, and what each parameter's learning rate is."""

import pytest
from tiny_training import tiny_model

from toolchain.errors import UsageError
from toolchain.training.optimizer import adamw, set_rate
from toolchain.training.recipes import RECIPES, Augmentation, Recipe, Schedule, adjusted, recipe_name, recipe_named

RELEASE_AUGMENTATION = Augmentation((0.08, 1.0), operations=2, magnitude=9, magnitude_std=0.5, jitter=0.4, erasing=0.25)


@pytest.mark.parametrize(
    ("epochs_done", "factor"), [(0.0, 0.0), (0.5, 0.25), (1.0, 0.5), (2.0, 1.0), (6.0, 0.505), (10.0, 0.01)]
)
def test_learning_rate_by_hand(epochs_done, factor):
    schedule = Schedule(epochs=10, learning_rate=1.0, warmup_epochs=2)
    assert schedule.rate(epochs_done) == pytest.approx(factor)


# spec/lctr.md, "Training recipe of the release".
@pytest.mark.parametrize(
    ("name", "epochs", "batch", "peak", "tau"), [("cub", 80, 512, 5e-5, 0.09), ("ilsvrc", 14, 1024, 1e-3, 0.18)]
)
def test_the_recipe_of_the_release(name, epochs, batch, peak, tau):
    recipe = RECIPES[name]
    schedule = recipe.effective()
    assert (schedule.epochs, recipe.batch_size, recipe.tau) == (epochs, batch, tau)
    assert (schedule.weight_decay, schedule.label_smoothing, recipe.drop_path) == (0.05, 0, 0.1)
    assert (recipe.augmentation, recipe.repeats, recipe.cutmix.probability) == (RELEASE_AUGMENTATION, 3, 0)
    # lr_effective = lr * global batch / 512, from 1e-6 through the peak to 1e-5.
    rates = [schedule.learning_rate * schedule.rate(epoch) for epoch in (0, 5, epochs)]
    assert rates == pytest.approx([1e-6, peak, 1e-5])


def test_the_release_s_learning_rate_follows_the_batch_and_ours_does_not():
    assert adjusted(RECIPES["cub"], batch_size=64).effective().learning_rate == pytest.approx(5e-5 / 8)
    assert adjusted(RECIPES["shapes"], batch_size=8).effective() == RECIPES["shapes"].schedule


@pytest.mark.parametrize(
    ("data", "blocks", "name"),
    [
        ("shapes", None, "shapes"),
        ("cub:/data/CUB_200_2011", None, "cub"),
        ("ilsvrc:/data", None, "ilsvrc"),
        ("folder:/data", None, "cub"),
        ("cub:x", 0, "frozen"),
        ("shapes", 3, "finetune"),
    ],
)
def test_the_data_and_what_is_frozen_choose_a_recipe(data, blocks, name):
    assert recipe_name(data, blocks) == name


def test_an_unknown_recipe_is_named_with_the_known_ones():
    with pytest.raises(UsageError, match="unknown recipe 'imagenet': choose one of shapes, frozen, finetune, cub, ils"):
        recipe_named("imagenet")


def test_what_is_not_given_stays_and_what_is_given_lands_where_it_belongs():
    recipe = adjusted(RECIPES["cub"], epochs=3, batch_size=None, cutmix=0.25, drop_path=0.0, keep="best")
    assert (recipe.schedule.epochs, recipe.batch_size) == (3, 512)
    assert (recipe.cutmix.probability, recipe.drop_path) == (0.25, 0)
    assert (recipe.schedule.keep, recipe.schedule.evaluate_every) == ("best", 1)


@pytest.mark.parametrize(
    ("recipe", "changes", "complaint"),
    [
        ("cub", {"accumulate": 0}, "--accumulate 0 is too low: give 1 or more"),
        ("cub", {"epochs": 0}, "--epochs 0 is too low"),
        ("cub", {"batch_size": -1}, "--batch-size -1 is too low"),
        ("cub", {"evaluate_every": -1}, "--evaluate-every -1 is too low: give 0 or more"),
        ("cub", {"seed": -1}, "--seed -1 is too low"),
        ("cub", {"learning_rate": 0.0}, "--learning-rate 0 cannot be used: give one over 0"),
        ("cub", {"learning_rate": float("nan")}, "--learning-rate nan cannot be used"),
        ("cub", {"layer_decay": 1.5}, "--layer-decay 1.5 cannot be used: give one over 0 and at most 1"),
        ("cub", {"weight_decay": -0.1}, "--weight-decay -0.1 is too low"),
        ("cub", {"cutmix": 1.1}, "--cutmix 1.1 is no share"),
        ("cub", {"drop_path": 1.0}, "--drop-path 1 is no rate"),
        ("cub", {"ema": 1.0}, "--ema 1 is no decay"),
        ("cub", {"keep": "first"}, "--keep first is unknown: give last or best"),
        ("cub", {"keep": "best", "evaluate_every": 0}, "--keep best with --evaluate-every 0 has nothing to choose by"),
        ("cub", {"views": 4}, "--views 4 counts cached views, and nothing is cached: add --train-blocks"),
        ("shapes", {"views": 4, "train_blocks": 2}, "--views 4 needs a recipe that augments"),
        ("frozen", {"layer_decay": 0.5}, "--drop-path and --layer-decay act on blocks, and none is trained"),
        ("finetune", {"train_blocks": -1}, "--train-blocks -1 is too low"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(recipe, changes, complaint):
    with pytest.raises(UsageError) as error:
        adjusted(RECIPES[recipe], **changes)
    assert complaint in str(error.value)


def test_every_parameter_has_the_rate_of_its_depth_and_kind():
    model = tiny_model()
    schedule = Schedule(epochs=2, learning_rate=1.0, routing_rate=0.1, warmup_epochs=0, layer_decay=0.5)
    optimizer = adamw(model, schedule)
    set_rate(optimizer, schedule, 0.0)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert len(found) == len(names)
    # Two blocks: the last one has the decay once, the first twice, the embedding three times.
    assert {name: found[id(names[name])] for name in ("CDM.weight", "CDM.bias", "norm.weight", "conv3x3.weight")} == {
        "CDM.weight": (1, 0.05),
        "CDM.bias": (1, 0),
        "norm.weight": (1, 0),
        "conv3x3.weight": (0.1, 0.05),
    }
    for name, rate in (("blocks.1.mlp.fc1.weight", 0.5), ("blocks.0.mlp.fc1.weight", 0.25), ("pos_embed", 0.125)):
        assert found[id(names[name])] == (rate, 0 if name == "pos_embed" else 0.05)


def test_frozen_parameters_have_no_rate():
    model = tiny_model()
    model.blocks.requires_grad_(False)
    optimizer = adamw(model, Recipe(Schedule(epochs=1, learning_rate=1.0)).schedule)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if not name.startswith("blocks.")}
