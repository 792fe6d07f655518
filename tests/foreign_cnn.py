"""A convolutional network that lctr did not make: no metadata of ours, another input name, 11 x 11 pixels or any."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
WEIGHTS = {"stem.weight": (4, 3, 3, 3), "stem.bias": (4,), "fc.weight": (5, 4), "fc.bias": (5,)}


def foreign_cnn(path: Path, batch: str = "n", size: str = "11", seed: int = 0) -> Path:
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    cnn (float[{batch}, 3, {size}, {size}] pixels) => (float[{batch}, 5] scores) {{
        [stem] first = Conv <pads = [1, 1, 1, 1]> (pixels, "stem.weight", "stem.bias")
        [act] active = Relu (first)
        [pool] pooled = GlobalAveragePool (active)
        [flat] flat = Flatten (pooled)
        [fc] scores = Gemm <transB = 1> (flat, "fc.weight", "fc.bias")
    }}"""
    model = parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, shape in WEIGHTS.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    onnx.save(model, path)
    return path
