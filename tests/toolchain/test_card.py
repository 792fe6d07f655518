import pytest

from toolchain.card import KEYS, BackboneCard, ModelCard, card_from_metadata
from toolchain.errors import ModelError
from toolchain.preprocessing import Preprocessing

CARD = ModelCard("lctr-nano", ("a, b", 'ü "q"'), Preprocessing(112, 128, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), 0.1)


def test_a_card_survives_metadata() -> None:
    metadata = CARD.to_metadata()
    assert tuple(metadata) == KEYS
    assert all(isinstance(value, str) for value in metadata.values())
    assert card_from_metadata({**metadata, "other": "ignored"}, "x") == CARD


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named(key: str) -> None:
    metadata = CARD.to_metadata()
    del metadata[key]
    with pytest.raises(ModelError, match=f"m.onnx does not say its {key}"):
        card_from_metadata(metadata, "m.onnx")


@pytest.mark.parametrize(("key", "value"), [("tau", "low"), ("class_names", "{"), ("preprocessing", "[1]")])
def test_an_unreadable_value_is_refused(key: str, value: str) -> None:
    with pytest.raises(ModelError, match=r"m.onnx is unreadable"):
        card_from_metadata({**CARD.to_metadata(), key: value}, "m.onnx")


def test_a_backbone_s_card_is_no_localizer_s() -> None:
    metadata = BackboneCard("lctr-small", "DeiT, deit.pth").to_metadata()
    told = r"b.safetensors is a backbone .+ \(DeiT, deit.pth\): train .+ `lctr train --preset lctr-small --init b.safe"
    with pytest.raises(ModelError, match=told):
        card_from_metadata(metadata, "b.safetensors")
    assert "kind" not in CARD.to_metadata()
