import numpy as np
import pytest
import torch
import torch.nn.functional as F

from toolchain.errors import UsageError
from toolchain.model.cdm import CueDiggingModule, pooled_logits
from toolchain.model.lctr import Lctr, fused_map
from toolchain.model.prediction import class_predictor, predictor
from toolchain.model.presets import PRESETS, Preset, preset_named
from toolchain.model.rpam import class_token_map, relational_map

SMALL = Preset("test", image_size=32, patch_size=8, dim=24, depth=3, heads=3)


def random_lctr(num_classes: int = 5) -> Lctr:
    """Every parameter random: a fresh model's routing is constant, and hides errors behind it."""
    torch.manual_seed(0)
    model = Lctr(SMALL, num_classes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def random_attentions(layers: int = 3, batch: int = 2, tokens: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, tokens, tokens, generator=generator).softmax(-1) for _ in range(layers)]


@torch.no_grad()
def test_a_batch_gives_what_its_images_give_alone():
    model = random_lctr()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    together = model(images)
    for index in range(4):
        alone = model(images[index : index + 1])
        torch.testing.assert_close(together.logits[index], alone.logits[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.map[index], alone.map[0], rtol=1e-4, atol=1e-7)


def test_shapes_of_the_outputs():
    localized = random_lctr(num_classes=7)(torch.zeros(2, 3, 32, 32))
    assert localized.logits.shape == (2, 7)
    assert localized.map.shape == (2, 4, 4)
    assert (localized.map >= 0).all()


@pytest.mark.parametrize(
    ("row", "column", "weight"),
    [(1, 1, 1), (2, 3, 1), (0, 2, 2 / 3), (3, 4, 2 / 3), (2, 0, 2 / 3), (0, 0, 4 / 9), (3, 5, 4 / 9)],
)
def test_pooled_logits_weigh_the_border_less(row, column, weight):
    # A cell lies in the 3 x 3 window of itself and of its 8, 5 or 3 neighbours; every window divides by 9.
    maps = torch.zeros(1, 2, 4, 6)
    maps[0, 1, row, column] = 3
    torch.testing.assert_close(pooled_logits(maps), torch.tensor([[0, 3 * weight / 24]]))


@torch.no_grad()
def test_mixed_class_maps_are_those_of_the_mixed_kernel():
    torch.manual_seed(3)
    module = CueDiggingModule(dim=6, num_classes=5, experts=4)
    for parameter in module.parameters():
        parameter.normal_()
    features, cues = torch.randn(2, 3, 6, 4, 4)
    maps, routing = module(features, cues)
    for image in range(3):
        kernel = sum(routing[image, g] * module.weight[g] for g in range(4))
        expected = F.conv2d(features[image : image + 1], kernel, module.bias, padding=1)
        torch.testing.assert_close(maps[image : image + 1], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_routing_sees_average_and_maximum():
    module = CueDiggingModule(dim=2, num_classes=3, experts=1)
    module._routing_fn_two.fc.weight.copy_(torch.tensor([[1.0, 0.0]]))
    module._routing_fn_two.fc2.weight.copy_(torch.tensor([[0.0, 1.0]]))
    cues = torch.tensor([[[[1.0, 3.0]], [[-1.0, 5.0]]]])  # average of the first channel 2, maximum of the second 5
    _, routing = module(torch.zeros_like(cues), cues)
    torch.testing.assert_close(routing, torch.sigmoid(torch.tensor([[7.0]])))


def test_every_expert_starts_half_open():
    _, routing = CueDiggingModule(dim=6, num_classes=5, experts=4)(torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4))
    assert (routing == 0.5).all()


def test_relational_map_is_one_row_of_the_squared_attention():
    attentions = random_attentions()
    per_layer = [np.linalg.matrix_power(a.double().numpy(), 2)[0, 1:] / 5 for a in torch.stack(attentions)[:, 0]]
    torch.testing.assert_close(
        relational_map(attentions, 2)[0].double(), torch.from_numpy(np.mean(per_layer, 0).reshape(2, 2))
    )


def test_relational_map_by_hand():
    # One patch: m = (A[0, 0] A[0, 1] + A[0, 1] A[1, 1]) / 2, averaged over two layers.
    first = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])  # (0.1875 + 0.375) / 2
    second = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # 0
    assert relational_map([first, second], 1).item() == pytest.approx(0.5625 / 2 / 2)


def test_class_token_map_is_its_row_without_itself():
    attentions = random_attentions()
    expected = (attentions[0] + attentions[1] + attentions[2])[1, 0, 1:].reshape(2, 2) / 3
    torch.testing.assert_close(class_token_map(attentions, 2)[1], expected)


def test_fused_map_takes_each_images_own_class_and_drops_what_speaks_against_it():
    relation = torch.tensor([[[2.0, 3.0]], [[5.0, 7.0]]])
    class_maps = torch.tensor([[[[1.0, -1.0]], [[9.0, 9.0]]], [[[9.0, 9.0]], [[-2.0, 4.0]]]])
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert fused_map(relation, logits, class_maps).tolist() == [[[2.0, 0.0]], [[0.0, 28.0]]]


def test_maps_of_given_classes_are_the_predicted_ones_where_the_classes_are():
    model = random_lctr()
    images = np.random.default_rng(5).standard_normal((6, 3, 32, 32), np.float32)
    logits, maps = predictor(model)(images)
    again, same = class_predictor(model)(images, logits.argmax(1))
    np.testing.assert_allclose(again, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(same, maps, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("classes", [1, 5])
def test_a_training_step_sees_the_logits_and_gradients_of_the_plain_model(classes):
    model = random_lctr(classes)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    weights = torch.randn(3, classes, generator=torch.Generator().manual_seed(8))
    found = []
    for logits in (model.all_maps(images).logits, model.classify(model.cues(images)).logits):
        model.zero_grad()
        (logits * weights).sum().backward()
        found.append((logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (plain, plain_gradients), (pooled, gradients) = found
    torch.testing.assert_close(pooled, plain, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        largest = plain_gradients[name].abs().max()
        assert (gradient - plain_gradients[name]).abs().max() <= 1e-4 * largest, name
        assert largest > 0, name


@torch.no_grad()
def test_maps_of_given_classes_by_their_definition():
    model = random_lctr()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    classes = np.array([4, 0, 2, 2])
    _, maps = class_predictor(model)(images.numpy(), classes)
    _, attentions = model.tokens(images)
    class_maps = model.all_maps(images).maps
    relation = relational_map(attentions, SMALL.grid)
    for image, label in enumerate(classes):
        expected = relation[image] * class_maps[image, label].clamp(min=0)
        np.testing.assert_allclose(maps[image], expected, rtol=1e-4, atol=1e-7)
    assert maps.any()


def test_the_classifier_looks_away_from_what_the_class_token_attends_to():
    model = random_lctr()
    cues = model.cues(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(4)))
    reverse = 1 - cues.class_attention
    _, routing = model.CDM(cues.features, model.conv3x3(cues.features * reverse[:, None]))
    torch.testing.assert_close(model.classify(cues).routing, routing)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_divide_evenly(preset):
    assert preset.image_size % preset.patch_size == 0
    assert preset.dim % preset.heads == 0
    assert preset.grid == 14


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'lctr-huge'.*lctr-small, lctr-tiny, lctr-nano"):
        preset_named("lctr-huge")
