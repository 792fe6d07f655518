"""A localizer with weights set by hand, and squares for it to find: every figure can be derived.

The class is the colour of a square on black, its box the square. Every product but `stem.1` only copies, blurs or sums.
The input of `stem.1` carries red, green, blue and, where it is planted, an outlier: a channel of OUTLIER x the
brightness, which `stem.1` multiplies by zero. In 8 bits that channel takes all levels, and red, green and blue round to
0: no class, a constant map, no box.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser
from PIL import Image

from toolchain.card import ModelCard
from toolchain.preprocessing import Preprocessing

SIZE, SIDE = 32, 12
OUTLIER = 4000.0
BLUR = np.array([[0.1, 0.1, 0.1], [0.1, 0.2, 0.1], [0.1, 0.1, 0.1]])
CLASSES = {"green": (0, 200, 0), "red": (200, 0, 0)}
CARD = ModelCard("square-finder", tuple(CLASSES), Preprocessing(SIZE, SIZE, (0.0,) * 3, (1.0,) * 3), tau=0.5)
GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
finder (float[b, 3, 32, 32] image) => (float[b, 2] logits, float[b, 32, 32] map) {
    ["stem.0/Conv"] colours = Conv (image, stem_weight)
    ["stem.1/Conv"] mixed = Conv (colours, mix_weight)
    ["blur/Conv"] blurred = Conv <pads = [1, 1, 1, 1]> (mixed, blur_weight)
    ["where/Conv"] where = Conv (blurred, where_weight)
    ["squeeze"] map = Squeeze (where, one)
    ["pool"] pooled = ReduceMean <keepdims = 0> (blurred, space)
    ["class/Gemm"] scores = Gemm <transB = 1> (pooled, class_weight)
    ["_routing_fn_two/Gemm"] routed = Gemm <transB = 1> (pooled, routing_weight)
    ["route"] logits = Add (scores, routed)
}"""
PRODUCTS = ["stem.0/Conv", "stem.1/Conv", "blur/Conv", "where/Conv", "class/Gemm"]
PLANTED = "stem.1/Conv"


def finder(path: Path, outlier: float = OUTLIER) -> Path:
    """The localizer as a float ONNX file."""
    colours = np.concatenate([np.eye(3), np.full((1, 3), outlier)])
    mixing = np.concatenate([np.eye(3), np.zeros((3, 1))], 1)
    weights = {
        "stem_weight": colours.reshape(4, 3, 1, 1),
        "mix_weight": mixing.reshape(3, 4, 1, 1),
        # Half is no level of 127: but for the zeros, no product here is exact in INT8.
        "blur_weight": np.einsum("oc,hw->ochw", np.eye(3), BLUR),
        "where_weight": np.ones((1, 3, 1, 1)),
        # A localizer of ours has routing, which stays float; this one adds nothing.
        "routing_weight": np.zeros((2, 3)),
        "class_weight": np.array([[3, 40, 3], [40, 3, 3]]),
    }
    model = parser.parse_model(GRAPH)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()
    )
    for name, axes in (("one", [1]), ("space", [2, 3])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(axes), name))
    helper.set_model_props(model, CARD.to_metadata())
    onnx.save(model, path)
    return path


def squares(root: Path, per_class: int = 6, *, boxes: bool = True) -> str:
    """A data set of squares; its `--data`."""
    rng = np.random.default_rng(0)
    lines = []
    for split in ("train", "val", "test"):
        for name, colour in CLASSES.items():
            for number in range(per_class):
                x, y = (int(v) for v in rng.integers(0, SIZE - SIDE, 2))
                image = Image.new("RGB", (SIZE, SIZE))
                image.paste(colour, (x, y, x + SIDE, y + SIDE))
                file = root / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file)
                lines.append(f"{split}/{name}/{number}.png {x} {y} {x + SIDE} {y + SIDE}\n")
    if boxes:
        (root / "boxes.txt").write_text("".join(lines))
    return f"folder:{root}"
