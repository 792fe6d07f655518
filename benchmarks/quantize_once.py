"""One quantizer in a process of its own: an ONNX file and calibration images in, an INT8 ONNX file out.

    python benchmarks/quantize_once.py TOOL METHOD SCOPE FLOAT.onnx IMAGES.npy INT8.onnx

Prints what it cost as JSON. Importing the libraries is not counted. `benchmarks/quantizers.py` calls it, ModelOpt's
with another interpreter, so this file needs none of our packages but for our own quantizer.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from footprint import footprint
from numpy.typing import NDArray

INPUT = "image"
TENSORRT = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "CalibTensorRangeSymmetric": True,
    "QuantizeBias": False,
    "AddQDQPairToWeight": True,
}
"""ONNX Runtime's options for a model that TensorRT will read: zero points 0, biases float, Q and DQ at weights."""
WEIGHTED = "for TensorRT, weights' products"
SCOPES: dict[str, dict[str, Any]] = {
    "defaults": {"ActivationSymmetric": True, "WeightSymmetric": True},
    "for TensorRT": TENSORRT,
    WEIGHTED: TENSORRT,
}
"""How ONNX Runtime is asked; the last is what a user arrives at who knows what attention needs."""
PRODUCTS = {"MatMul", "Gemm", "Conv"}
METHODS = {"min-max": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}

Images = NDArray[np.float32]


def main() -> None:
    """Quantize, and print what it cost."""
    tool, method, scope, *files = sys.argv[1:]
    model, images, output = map(Path, files)
    action = TOOLS[tool](method, scope, model, np.load(images), output)
    print(json.dumps(footprint(action)))


def ours(method: str, scope: str, model: Path, images: Images, output: Path) -> Callable[[], object]:
    """What `lctr quantize` does; the scope is our placement's own."""
    from toolchain import calibration, quantization

    batches = [images[at : at + calibration.BATCH] for at in range(0, len(images), calibration.BATCH)]
    source = calibration.CalibrationSource(scope, len(images), {}, lambda window: iter(batches))
    return lambda: quantization.int8_onnx(model, source, output, method=method)


def onnx_runtime(method: str, scope: str, model: Path, images: Images, output: Path) -> Callable[[], object]:
    """`quantize_static` after `quant_pre_process`, as its documentation has it; one image a batch."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([{INPUT: image[None]} for image in images])

        def get_next(self) -> dict[str, Images] | None:
            return next(self.feeds, None)

    def action() -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            # Its symbolic shapes are left out: on a dynamic batch they are "Incomplete", which is an error (1.32).
            quant_pre_process(model, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                output,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=getattr(quantization.CalibrationMethod, METHODS[method]),
                op_types_to_quantize=_operators(scope),
                nodes_to_exclude=_attention(prepared) if scope == WEIGHTED else None,
                extra_options=SCOPES[scope],
            )

    return action


def _operators(scope: str) -> list[str] | None:
    """All but Gather for TensorRT: one that reads a weight gets its scales per channel on the wrong axis (1.32)."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    if scope == "defaults":
        return None
    return sorted(PRODUCTS if scope == WEIGHTED else {*QDQRegistry, *QLinearOpsRegistry} - {"Gather"})


def _attention(model: Path) -> list[str]:
    """Names of the products of two activations; the option MatMulConstBOnly has no effect on Q and DQ (1.32)."""
    graph = onnx.load(model).graph
    constants = {initializer.name for initializer in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and constants.isdisjoint(node.input)]


def model_optimizer(method: str, scope: str, model: Path, images: Images, output: Path) -> Callable[[], object]:
    """ModelOpt's ONNX quantization with its own placement, on the CPU; the scope is the type of what stays float."""
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

    shape = "x".join(str(side) for side in (1, *images.shape[1:]))
    return lambda: quantize(
        str(model),
        calibration_data={INPUT: images},
        calibration_method=method,
        calibration_shapes=f"{INPUT}:{shape}",
        calibration_eps=["cpu"],
        high_precision_dtype=scope,
        output_path=str(output),
        log_level="ERROR",
    )


TOOLS = {"lctr": ours, "onnxruntime": onnx_runtime, "modelopt": model_optimizer}

if __name__ == "__main__":
    main()
