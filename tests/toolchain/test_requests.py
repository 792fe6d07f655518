"""What a preset's name stands for."""

import pytest
from guide_factories import CLASSES, MEAN, SIZE, STD

from calib.fdda import Fdda
from toolchain.calibration import Stated
from toolchain.requests import Request, method_of
from toolchain.teachers import guide_teacher


@pytest.mark.parametrize(("preset", "relative"), [("fast", True), ("paper", False)])
def test_only_the_published_preset_compares_batchnorms_as_they_are(preset: str, relative: bool) -> None:
    known = guide_teacher("guide_factories:cnn", Stated(mean=MEAN, std=STD, image_size=SIZE), num_classes=CLASSES)
    method = method_of(Request(4, preset=preset), known, None)
    assert isinstance(method, Fdda)
    assert method.alignment is not None
    assert {layer.relative for layer in method.alignment.layers} == {relative}
