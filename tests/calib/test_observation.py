import pytest
import torch
from tiny_vit import ATTENTION, LAYERS, VIEW, labelled_images, tiny_vit

from calib.observation import NOTHING, frozen, observing
from calib.tokens import token_view
from toolchain.errors import ModelError


def seen_by(model, images, view=VIEW):
    with frozen(model), torch.no_grad(), observing(model, view) as observation:
        model(images.float())
        return observation.take()


def hooks_of(model):
    return sum(len(m._forward_pre_hooks) for m in model.modules())


def test_tokens_leave_out_the_class_token():
    model, (images, _) = tiny_vit(), labelled_images(2)
    assert [tuple(t.shape) for t in seen_by(model, images)] == [(6, 16, 8)] * len(LAYERS)
    with torch.no_grad():
        model.cls_token.mul_(100)
    first = seen_by(model, images)[0]
    assert torch.equal(first, model.proj(images).flatten(2).transpose(1, 2))


def test_attention_is_averaged_over_heads():
    model, (images, _) = tiny_vit(), labelled_images(1)
    found = {}
    handle = model.blocks[0].mix.register_forward_pre_hook(lambda module, inputs: found.update(mix=inputs[0]))
    first = seen_by(model, images, ATTENTION)[0]
    handle.remove()
    # 8 channels are 2 heads of 4, side by side.
    torch.testing.assert_close(first, (found["mix"][:, 1:, :4] + found["mix"][:, 1:, 4:]) / 2)


def test_hooks_go_even_when_the_model_fails():
    model = tiny_vit()
    with pytest.raises(RuntimeError, match="expected input"), observing(model, VIEW):
        model(torch.zeros(1, 1, 16, 16))
    assert hooks_of(model) == 0
    unknown = token_view(["norm", "blocks.9.norm1"])
    with pytest.raises(ModelError, match=r"no module blocks\.9\.norm1"), observing(model, unknown):
        pass
    assert hooks_of(model) == 0


def test_a_layer_that_did_not_run_is_an_error():
    model = tiny_vit()
    with observing(model, VIEW) as observation:
        model.proj(torch.zeros(1, 3, 16, 16))
        with pytest.raises(ModelError, match=r"blocks\.0\.norm1.* did not run"):
            observation.take()


def test_a_layer_that_takes_no_tokens_is_an_error():
    view = token_view(["proj"])
    with pytest.raises(ModelError, match="'proj' takes an input"), observing(model := tiny_vit(), view):
        model(torch.zeros(2, 3, 16, 16))
    assert hooks_of(model) == 0


def test_a_layer_that_runs_twice_is_an_error():
    model = tiny_vit()
    with observing(model, VIEW):
        model(torch.zeros(1, 3, 16, 16))
        with pytest.raises(ModelError, match="more than once"):
            model(torch.zeros(1, 3, 16, 16))


def test_looking_at_nothing_sees_nothing_any_number_of_times():
    model = tiny_vit()
    with observing(model, NOTHING) as observation:
        model(torch.zeros(1, 3, 16, 16))
        model(torch.zeros(1, 3, 16, 16))
        assert observation.take() == []


def test_frozen_puts_everything_back():
    model = tiny_vit()
    model.head.eval()
    model.proj.weight.requires_grad_(False)
    with frozen(model):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    assert model.training
    assert not model.head.training
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["proj.weight"]
