"""The smallest localizer there is, in every form that a backend takes, and in numpy, which says what is right.

`logits`: the mean color times a matrix. `map`: the brightness of each quarter of the image, where it is positive.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.backend import BuildOptions, Feeds, Input, Session
from engines.memory import MemoryBackend
from engines.registry import backend
from engines.torch_runtime import TorchBackend

SIDE, CLASSES = 8, 5
IMAGE = Input("image", np.dtype(np.float32), ("batch", 3, SIDE, SIDE))
OUTPUTS = ("logits", "map")
WEIGHT = np.random.default_rng(0).standard_normal((3, CLASSES)).astype(np.float32)
BIAS = np.arange(CLASSES, dtype=np.float32)
METADATA = {"tau": 0.3, "class_names": ["a", "b"], "protocol": "lctr"}
AS_STRINGS = {"tau": "0.3", "class_names": '["a", "b"]', "protocol": "lctr"}


def images(count: int) -> dict[str, NDArray[Any]]:
    """Noise of this batch size, the same each time."""
    return {"image": np.random.default_rng(count).standard_normal((count, 3, SIDE, SIDE)).astype(np.float32)}


def reference(feeds: Feeds) -> dict[str, NDArray[Any]]:
    """In numpy."""
    image = feeds["image"]
    quarters = image.reshape(-1, 3, 2, SIDE // 2, 2, SIDE // 2).mean((1, 3, 5))
    return {"logits": image.mean((2, 3)) @ WEIGHT + BIAS, "map": np.maximum(quarters, 0)}


def written(path: Path) -> Path:
    """As an ONNX file."""
    quarter = {"kernel_shape": [SIDE // 2] * 2, "strides": [SIDE // 2] * 2}
    nodes = [
        helper.make_node("ReduceMean", ["image", "pixels"], ["color"], name="color", keepdims=0),
        helper.make_node("Gemm", ["color", "weight", "bias"], ["logits"], name="head"),
        helper.make_node("ReduceMean", ["image", "channel"], ["gray"], name="gray", keepdims=1),
        helper.make_node("AveragePool", ["gray"], ["quarters"], name="quarters", **quarter),
        helper.make_node("Squeeze", ["quarters", "channel"], ["flat"], name="flat"),
        helper.make_node("Relu", ["flat"], ["map"], name="map"),
    ]
    constants = {"pixels": np.array([2, 3]), "channel": np.array([1]), "weight": WEIGHT, "bias": BIAS}
    shapes = {"image": ["batch", 3, SIDE, SIDE], "logits": ["batch", CLASSES], "map": ["batch", 2, 2]}
    image, *answers = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items())
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", [image], answers, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


class TinyModule(torch.nn.Module):
    """As a torch module, in float32 or float16 between its input and its outputs."""

    def __init__(self, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.precision = precision
        self.head = torch.nn.Linear(3, CLASSES)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(WEIGHT.T))
            self.head.bias.copy_(torch.from_numpy(BIAS))
        self.to(precision)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        image = image.to(self.precision)
        quarters = F.avg_pool2d(image.mean(1, keepdim=True), SIDE // 2)
        return self.head(image.mean((2, 3))).float(), F.relu(quarters[:, 0]).float()


@contextmanager
def opened(name: str, folder: Path) -> Iterator[Session]:
    """In the backend of this name: built where it builds, from the ONNX file where it opens those."""
    runtime = backend(name)
    if isinstance(runtime, TorchBackend):
        module = TinyModule(torch.float16 if runtime.precision == "fp16" else torch.float32)
        with runtime.session_from_module(module, [IMAGE], OUTPUTS, AS_STRINGS, "tiny") as session:
            yield session
        return
    if name == "memory":
        runtime = MemoryBackend(reference, outputs=OUTPUTS)
    engine = runtime.build(written(folder / "tiny.onnx"), folder / "tiny.engine", BuildOptions(metadata=METADATA))
    with runtime.open(engine.path) as session:
        yield session
