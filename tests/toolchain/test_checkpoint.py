import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toolchain.card import BackboneCard, ModelCard
from toolchain.errors import ArtifactError, ModelError, UsageError
from toolchain.model import checkpoint
from toolchain.model.backbone import VisionTransformer
from toolchain.model.lctr import Lctr
from toolchain.model.presets import PRESETS
from toolchain.preprocessing import Preprocessing

CARD = ModelCard("lctr-nano", ("cat", "dog"), Preprocessing(112, 128, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)), 0.17)


def header(metadata: dict[str, str]) -> dict[str, str]:
    return {"lctr": json.dumps(metadata)}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Lctr, Path]:
    torch.manual_seed(0)
    model = Lctr(PRESETS["lctr-nano"], 2)
    path = tmp_path / "model.safetensors"
    checkpoint.save(model, CARD, path)
    return model, path


def test_weights_and_card_come_back(saved: tuple[Lctr, Path]) -> None:
    model, path = saved
    loaded, card = checkpoint.load(path)
    assert card == CARD == checkpoint.card_of(path)
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_a_truncated_file_is_refused(saved: tuple[Lctr, Path]) -> None:
    path = saved[1]
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ArtifactError, match=r"model.safetensors is no whole safetensors file .+: copy or make"):
        checkpoint.load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        checkpoint.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w.pop("norm.weight"), "'norm.weight' is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "'extra' has no place in it"),
        (lambda w: w.update(norms=w.pop("norm.weight")), "'norm.weight' is missing, and 'norms' has no place in it"),
        (
            lambda w: [w.pop(n) for n in list(w) if n.startswith("blocks")],
            "blocks.0.attn.qkv.bias' and 57 more are missing",
        ),
        (lambda w: w.update({"norm.weight": torch.zeros(7)}), r"'norm.weight' has shape \(7,\), not \(96,\)"),
        (lambda w: w.update({"norm.weight": torch.full((96,), torch.nan)}), "'norm.weight' holds NaN"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved: tuple[Lctr, Path], change, complaint: str) -> None:
    model, path = saved
    weights = dict(model.state_dict())
    change(weights)
    save_file(weights, path, metadata=header(CARD.to_metadata()))
    with pytest.raises(ModelError, match=complaint):
        checkpoint.load(path)


def test_a_file_without_card_is_refused(saved: tuple[Lctr, Path]) -> None:
    model, path = saved
    for metadata, complaint in ((None, "has no card"), ({"lctr": "{"}, "unreadable"), (header({}), "does not say its")):
        save_file(model.state_dict(), path, metadata=metadata)
        with pytest.raises(ModelError, match=complaint):
            checkpoint.load(path)


def test_an_unknown_preset_is_a_usage_error(saved: tuple[Lctr, Path]) -> None:
    model, path = saved
    save_file(model.state_dict(), path, metadata=header({**CARD.to_metadata(), "preset": "lctr-huge"}))
    with pytest.raises(UsageError, match="unknown preset 'lctr-huge': choose one of lctr-small"):
        checkpoint.load(path)


def test_a_backbone_is_taken_and_the_head_is_left(saved: tuple[Lctr, Path]) -> None:
    source, path = saved
    torch.manual_seed(1)
    target = Lctr(PRESETS["lctr-nano"], 5)
    head = {name: v.clone() for name, v in target.state_dict().items() if name.startswith(checkpoint.HEAD)}
    assert checkpoint.load_start(target, list("abcde"), path) == "backbone"
    for name, value in target.state_dict().items():
        expected = head[name] if name in head else source.state_dict()[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize(("classes", "taken"), [(("cat", "dog"), "backbone and head"), (("dog", "cat"), "backbone")])
def test_a_head_is_taken_for_the_same_classes_alone(
    saved: tuple[Lctr, Path], classes: tuple[str, str], taken: str
) -> None:
    torch.manual_seed(1)
    target = Lctr(PRESETS["lctr-nano"], 2)
    assert checkpoint.load_start(target, classes, saved[1]) == taken
    same = [torch.equal(v, saved[0].state_dict()[n]) for n, v in target.state_dict().items()]
    assert all(same) == (taken == "backbone and head")


def test_a_backbone_of_another_size_is_refused(saved: tuple[Lctr, Path]) -> None:
    told = "does not hold the backbone of lctr-tiny but of lctr-nano: use --preset lctr-nano"
    with pytest.raises(ModelError, match=told):
        checkpoint.load_start(Lctr(PRESETS["lctr-tiny"], 2), CARD.class_names, saved[1])


def test_a_start_needs_no_card(saved: tuple[Lctr, Path]) -> None:
    source, path = saved
    save_file(source.state_dict(), path)
    target = Lctr(PRESETS["lctr-nano"], 2)
    # Whose classes the head knows is not said.
    assert checkpoint.load_start(target, CARD.class_names, path) == "backbone"
    assert torch.equal(target.pos_embed, source.pos_embed)
    with pytest.raises(ModelError, match=r"backbone of lctr-tiny: 'blocks.10.+; choose the preset it was made for"):
        checkpoint.load_start(Lctr(PRESETS["lctr-tiny"], 2), CARD.class_names, path)


def test_a_backbone_is_written_to_start_from_and_is_no_localizer(tmp_path: Path) -> None:
    source, path = VisionTransformer(PRESETS["lctr-nano"]), tmp_path / "b.safetensors"
    checkpoint.save(source, BackboneCard("lctr-nano", "somewhere"), path)
    target = Lctr(PRESETS["lctr-nano"], 2)
    assert checkpoint.load_start(target, CARD.class_names, path) == "backbone"
    assert torch.equal(target.pos_embed, source.pos_embed)
    for reader in (checkpoint.load, checkpoint.card_of):
        with pytest.raises(ModelError, match=r"b.safetensors is a backbone without a localizer \(somewhere\)"):
            reader(path)


def test_a_pickle_is_sent_to_import(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "c.pth")
    with pytest.raises(
        ArtifactError, match=r"c.pth is no whole safetensors file .+: make one of it with `lctr import`"
    ):
        checkpoint.load_start(Lctr(PRESETS["lctr-nano"], 2), CARD.class_names, tmp_path / "c.pth")
