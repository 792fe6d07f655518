"""The `Layers:` listing that a builder of TensorRT-RTX or TensorRT logs at detailed verbosity, as data.

    Layers:
    Name: fc1/MatMul_myl0_2, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,64], Strides: [64,1],
    StrideOrder: [1,0], Datatype: Int8, Format: (Linear) Row major linear format }], Constants: [ ... ],
    Outputs: [ ... ], TacticName: ..., StreamId: 0, Metadata: [ONNX Layer: fc1/MatMul][ONNX Layer: x_dq]

One line per layer (folded here), an empty line ends it. Names are the user's and may hold any character, so the
separators are searched from where names cannot reach. A line that cannot be read is kept, not dropped silently.
"""

import re
from dataclasses import dataclass

HEADING = "Layers:"
LAYER = re.compile(
    r"Name: (?P<name>.*), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*)\], Constants: \[(?P<constants>.*)\], "
    r"Outputs: \[(?P<outputs>.*)\], TacticName: (?P<tactic>.*), StreamId: \d+, (EventId: \d+, )?Metadata: ?"
    r"(?P<metadata>.*)"
)
TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d,]*)\], Strides: \[[-\d,]*\], StrideOrder: \[[-\d,]*\], "
    r"Datatype: (?P<type>\w+)"
)
COUNTER = re.compile(r"_myl\d+_\d+$")
"""What the compiler appends to every layer name."""
ORIGIN, SEPARATOR = "[ONNX Layer: ", "\x1f"
"""How the metadata marks the ONNX nodes of a layer; the separator is ASCII's unit separator, invisible above."""

NO_KERNEL = frozenset({"shape_call", "signal", "wait"})
"""Shape arithmetic on the host, and streams that wait for one another."""
TYPES = {"Int8": "int8", "Half": "fp16", "Float": "fp32", "BFloat16": "bf16", "FP8": "fp8"}
"""The listing's data types in our words; one that is missing here keeps its own."""


@dataclass(frozen=True)
class Tensor:
    """An operand: `shape` with -1 where dynamic, its type as in `TYPES`, and the compiler's name for it."""

    shape: tuple[int, ...]
    type: str
    name: str = ""


@dataclass(frozen=True)
class Layer:
    """A compiled layer.

    Attributes:
        name: the kernel's name without the compiler's counter; GEMMs and convolutions keep the ONNX node names,
            joined by `+` where several were merged.
        type: `gemm`, `correlation` (convolution), `kgen` (generated kernel), `runtime_fusion`, ...
        inputs: activations read.
        constants: weights, scales and biases read.
        outputs: what it writes.
        tactic: kernel chosen, empty where that is left to the GPU.
        origins: labels of the ONNX nodes it came from.
    """

    name: str
    type: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tactic: str
    origins: tuple[str, ...]


@dataclass(frozen=True)
class LayerDump:
    """All layers in execution order.

    Attributes:
        layers: those that could be read.
        unread: the text of the others.
        constants_told: the listing names weights; an engine inspector's may not.
    """

    layers: tuple[Layer, ...]
    unread: tuple[str, ...] = ()
    constants_told: bool = True

    @property
    def kernels(self) -> tuple[Layer, ...]:
        """The layers that run on the GPU."""
        return tuple(layer for layer in self.layers if layer.type not in NO_KERNEL)


def layer_dump_from_log(log: str) -> LayerDump | None:
    """The listing in a builder's verbose log; None where the log holds none."""
    _, heading, rest = ("\n" + log).partition(f"\n{HEADING}\n")
    if not heading:
        return None
    # Not splitlines: names may hold what it takes for a line's end.
    lines = rest.partition("\n\n")[0].split("\n")
    read = [(line, LAYER.fullmatch(line)) for line in lines]
    return LayerDump(
        layers=tuple(_layer(match) for _, match in read if match),
        unread=tuple(line for line, match in read if not match),
    )


def _layer(match: re.Match[str]) -> Layer:
    marks = match["metadata"].split(SEPARATOR)
    return Layer(
        name=COUNTER.sub("", match["name"]),
        type=match["type"],
        inputs=_tensors(match["inputs"]),
        constants=_tensors(match["constants"]),
        outputs=_tensors(match["outputs"]),
        tactic=match["tactic"],
        origins=tuple(m.removeprefix(ORIGIN).removesuffix("]") for m in marks if m.startswith(ORIGIN)),
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(tuple(int(d) for d in m["shape"].split(",") if d), TYPES.get(m["type"], m["type"]), m["name"])
        for m in TENSOR.finditer(text)
    )
