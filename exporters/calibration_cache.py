"""The ranges of a graph as a calibration cache, for the implicit INT8 mode of TensorRT 10.x.

A cache is text: a line `TRT-<version>-<algorithm>`, then a line `<tensor>: <scale>` each, the scale amax / 127 as the
eight hexadecimal digits of its big-endian float32 (NVIDIA, sampleINT8, "Calibration file"). The version is TensorRT's
own integer, 10000 major + 100 minor + patch (NV_TENSORRT_VERSION in NvInferRuntimeBase.h of 10.x), and a builder of
another version drops the cache and asks for images instead.

Implicitly, a layer runs INT8 only where its inputs *and* outputs have scales (TensorRT's developer guide, "Implicit
Quantization"), and a tensor without one stays in higher precision. So the cache names what goes into the placed
products and what comes out of them, and nothing else.
"""

import re
import struct
from collections.abc import Mapping

import numpy as np
import onnx

from exporters.constants import Constants
from exporters.placement import Placement
from exporters.scales import activation_scale
from toolchain.errors import UsageError

ALGORITHM = "EntropyCalibration2"
"""The calibrator that reads the cache: a builder takes the cache of its own kind only, and this one is the default."""


def tensors_of_implicit(model: onnx.ModelProto, placement: Placement) -> tuple[str, ...]:
    """The tensors that need a scale, each once, in graph order.

    Those are the activations and outputs of the placed products, and what comes out where a constant (a bias) is added
    to such an output: a builder fuses the two.
    """
    constants = Constants(model)
    products = {site.output for site in placement.sites}
    biased = (
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Add"
        and products.intersection(node.input)
        and any(constants.has(name) for name in node.input)
    )
    needed = {*placement.activations, *products, *biased}
    inputs = [value.name for value in model.graph.input]
    made = [name for node in model.graph.node for name in node.output]
    return tuple(name for name in (*inputs, *made) if name in needed)


def version_number(version: str) -> int:
    """TensorRT's integer for a version such as `10.13.0`; what follows the third number does not count.

    Raises:
        UsageError: no version of TensorRT 10, the last one with an implicit mode.
    """
    found = re.fullmatch(r"(10)\.(\d{1,2})\.(\d{1,2})(\.\d+)*", version)
    if found is None:
        raise UsageError(
            f"TensorRT {version} reads no calibration cache of ours: name a 10.x version in full, such as 10.13.0."
        )
    major, minor, patch = (int(number) for number in found.groups()[:3])
    return 10_000 * major + 100 * minor + patch


def cache_from_amax(amax: Mapping[str, float], version: int) -> str:
    """The text of a cache.

    Args:
        amax: tensor -> largest magnitude to represent.
        version: `version_number` of the TensorRT that reads it.

    Raises:
        ModelError: a range is negative or not finite.
    """
    single = np.dtype(np.float32)
    scales = {name: activation_scale(name, value, single) for name, value in amax.items()}
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    return "\n".join([f"TRT-{version}-{ALGORITHM}", *lines, ""])
