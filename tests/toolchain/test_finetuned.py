"""The localizer of `make finetuned`, really trained on photographs: its figures, and its forms against each other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from deployment import lctr

from engines.registry import open_engine
from toolchain.boxes import box_from_map, iou
from toolchain.data.sources import open_data
from toolchain.model import checkpoint
from toolchain.model.lctr import Localized

PHOTOS = Path(__file__).parents[2] / ".photos"
MODEL = PHOTOS / "finetuned.safetensors"
DATA = f"cub:{PHOTOS / 'CUB_200_2011'}"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.exists(), reason=f"{MODEL} is not there: make finetuned, 40 minutes"),
]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    _, card = checkpoint.load(MODEL)
    photographs = open_data(DATA, "test", card.preprocessing, 40)
    return card.preprocessing.normalize(np.stack([photographs[i].image for i in range(len(photographs))]))


@pytest.fixture(scope="module")
@torch.no_grad()
def plain(images: np.ndarray) -> Localized:
    model, _ = checkpoint.load(MODEL)
    return model(torch.from_numpy(images))


def exported(folder: Path, precision: str) -> Path:
    path = folder / "model.onnx"
    done = lctr("export", MODEL, "--precision", precision, "-o", path)
    assert done.exit_code == 0, done.output
    return path


def boxes(maps: np.ndarray, tau: float) -> list[tuple[float, ...]]:
    return [box_from_map(map_, 224, tau).box for map_ in maps]


def test_it_is_as_good_as_it_was_trained_to_be():
    done = lctr("evaluate", MODEL, "--data", DATA, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["images"] == 800
    assert found["top1"] >= 75
    assert found["gt_known_loc"] >= 70


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_deployed_graph_computes_what_the_model_does(batch: int, images, plain, tmp_path):
    _, card = checkpoint.load(MODEL)
    with open_engine(exported(tmp_path, "fp32")) as session:
        for start in range(0, len(images) - batch + 1, 7):
            window = slice(start, start + batch)
            found = session.run({"image": images[window]})
            for name, expected in plain._asdict().items():
                expected = expected[window].numpy()
                assert np.abs(found[name] - expected).max() <= 1e-4 * np.abs(expected).max()
            assert boxes(found["map"], card.tau) == boxes(plain.map[window].numpy(), card.tau)


def test_fp16_leaves_the_boxes_where_they_are(images, plain, tmp_path):
    _, card = checkpoint.load(MODEL)
    with open_engine(exported(tmp_path, "fp16")) as session:
        found = session.run({"image": images})
    assert (found["logits"].argmax(1) == plain.logits.numpy().argmax(1)).all()
    pairs = zip(boxes(found["map"], card.tau), boxes(plain.map.numpy(), card.tau), strict=True)
    overlaps = [iou(ours, theirs) for ours, theirs in pairs]
    assert np.mean([overlap == 1 for overlap in overlaps]) >= 0.9
    assert min(overlaps) >= 0.9
