"""TensorRT in the shape of 11.x: no implicit INT8, `I/O Tensors`."""

import json
from enum import IntEnum

import fake_tensorrt_builder
from fake_tensorrt_builder import *  # noqa: F403

__version__ = "11.4.0.106"


class BuilderFlag(IntEnum):
    VERSION_COMPATIBLE = 2


class Runtime(fake_tensorrt_builder.Runtime):
    listing = json.dumps(
        {
            "Layers": [fake_tensorrt_builder.gemm("Datatype")],
            "I/O Tensors": [{"Name": "x", "IOMode": "Input"}, {"Name": "y", "IOMode": "Output"}],
        }
    )
