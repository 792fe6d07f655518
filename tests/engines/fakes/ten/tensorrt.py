"""TensorRT in the shape of 10.x: implicit INT8, `Bindings`."""

import json
from enum import IntEnum
from typing import Any

import fake_tensorrt_builder
from fake_tensorrt_builder import *  # noqa: F403

__version__ = "10.13.0.35"


class BuilderFlag(IntEnum):
    FP16 = 0
    INT8 = 1
    VERSION_COMPATIBLE = 2


class IInt8EntropyCalibrator2:
    pass


class IBuilderConfig(fake_tensorrt_builder.IBuilderConfig):
    int8_calibrator: Any = None

    def set_calibration_profile(self, profile: fake_tensorrt_builder.Profile) -> bool:
        self.calibration_profile = profile.shapes
        return True


class Builder(fake_tensorrt_builder.Builder):
    config = IBuilderConfig


class Runtime(fake_tensorrt_builder.Runtime):
    listing = json.dumps({"Layers": [fake_tensorrt_builder.gemm("Format/Datatype")], "Bindings": ["x", "y"]})
