"""Which shapes a network's inputs get, from what was stated."""

from pathlib import Path
from typing import Any

import pytest

from engines.backend import BatchProfile, BuildOptions, ShapeProfile
from engines.tensorrt_profiles import profiles_of
from toolchain.errors import UsageError

MODEL = Path("m.onnx")
INPUTS = {"image": (-1, 3, -1, -1), "mask": (-1, 4), "fixed": (1, 4)}


def one(*shape: int) -> ShapeProfile:
    return ShapeProfile(shape, shape, shape)


def test_a_batch_is_put_before_the_sizes_that_the_model_fixes() -> None:
    options = BuildOptions(batch=BatchProfile(1, 2, 4))
    found = profiles_of({"image": (-1, 3, 8, 8), "fixed": (1, 4)}, MODEL, options)
    assert found == {"image": ShapeProfile((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}


def test_shapes_are_taken_as_stated() -> None:
    shapes = {"image": ShapeProfile((1, 3, 8, 8), (1, 3, 16, 8), (2, 3, 32, 8)), "mask": one(2, 4)}
    assert profiles_of(INPUTS, MODEL, BuildOptions(shapes=shapes)) == shapes
    assert profiles_of(INPUTS, MODEL, BuildOptions(shapes={**shapes, "fixed": one(1, 4)})) == shapes


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, r"'image' of m\.onnx is \[-1, 3, -1, -1\], and no shape is stated for it: add it to --min-shapes"),
        ({"image": one(1, 3, 8, 8)}, r"'mask' of m\.onnx is \[-1, 4\], and no shape is stated"),
        ({"other": one(1)}, r"m\.onnx has no input 'other': state the shapes of image, mask, fixed"),
        ({"mask": one(1, 4, 1)}, r"'mask' of m\.onnx is \[-1, 4\], which 1x4x1 does not fit"),
        ({"mask": one(1, 5)}, "which 1x5 does not fit: keep the sizes that are not -1"),
        ({"fixed": one(2, 4)}, r"'fixed' of m\.onnx is \[1, 4\], which 2x4 does not fit"),
    ],
)
def test_what_is_missing_or_not_the_models_is_refused(shapes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        profiles_of(INPUTS, MODEL, BuildOptions(shapes=shapes))
