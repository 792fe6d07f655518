"""Largest magnitudes by channel, through ONNX Runtime, on a graph whose values are its input's."""

import numpy as np
import onnx
import pytest
from onnx import parser

from calib.channels import channel_amax
from toolchain.errors import ModelError


@pytest.fixture
def observer(tmp_path):
    path = tmp_path / "observer.onnx"
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[b, 2, 3] image) => (float[b, 2, 3] negative) { negative = Neg (image) }"""
    onnx.save(parser.parse_model(text), path)
    return path


def test_largest_magnitude_of_each_channel_over_all_images(observer):
    images = np.zeros((3, 2, 3), np.float32)
    images[0, 1, 0], images[1, 0, 1], images[2, 1, 1] = -4, 5, -6
    found = channel_amax(observer, ["negative", "image"], np.split(images, 3), images=3)
    assert list(found) == ["negative", "image"]
    for amax in found.values():
        np.testing.assert_array_equal(amax, [4, 6, 0])


def test_heads_stand_side_by_side(tmp_path):
    """(B, H, M, D) has the channels H * D, in this order."""
    path = tmp_path / "heads.onnx"
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[b, 2, 3, 2] image) => (float[b, 2, 3, 2] same) { same = Identity (image) }"""
    onnx.save(parser.parse_model(text), path)
    images = np.zeros((2, 2, 3, 2), np.float32)
    images[0, 0, 2], images[1, 0, 1], images[0, 1, 0] = (-7, 1), (2, 5), (3, -4)
    found = channel_amax(path, ["same", "image"], [images], images=2, heads={"same"})
    np.testing.assert_array_equal(found["same"], [7, 5, 3, 4])
    np.testing.assert_array_equal(found["image"], [7, 5])


def test_no_more_batches_are_taken_than_needed(observer):
    images = iter([np.full((2, 2, 3), value, np.float32) for value in (1, 2, 3, 4)])
    seen = []
    found = channel_amax(
        observer, ["negative"], images, images=3, progress=lambda done, total, note="": seen.append((done, total))
    )
    np.testing.assert_array_equal(found["negative"], [2, 2, 2])
    assert seen == [(2, 3), (4, 4)]
    assert len([*images]) == 2


def test_nan_names_the_tensor(observer):
    with pytest.raises(ModelError, match="'negative' holds NaN or infinity"):
        channel_amax(observer, ["negative"], [np.full((1, 2, 3), np.nan, np.float32)], images=1)
