"""The wiring of an ONNX file: which matrix products it has, and which of their operands come through Q/DQ.

A deployment machine has no `onnx` package, and only names and edges are needed, so the few protobuf fields that hold
them are read here directly (field numbers from onnx.proto3). Weights are skipped. Nodes inside the bodies of If, Loop
and Scan are not listed: no model of ours has them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolchain.errors import ModelError

MODEL_GRAPH, MODEL_OPSET, MODEL_METADATA = 7, 8, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2
GRAPH_NODE, GRAPH_INITIALIZER, TENSOR_NAME = 1, 5, 8
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP = 1, 2, 3, 4

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

LAYOUT_OPS = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""They move values without changing them: runtimes slide Q and DQ across them."""
QUANTIZATION_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class Node:
    """One ONNX node: `label` is its name, or `node_of_<first output>` (as TensorRT says) where it has none."""

    label: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Product:
    """A node whose cost is a matrix product.

    Attributes:
        name: the ONNX node's name.
        op: `MatMul`, `Gemm` or `Conv`.
        kind: `linear` or `convolution` (constant weight), `attention` (a MatMul of two activations).
        quantized: per operand (activation and weight; both factors for attention), whether it comes from a DQ.
        output_quantized: a Q reads the result; an Add (the bias) may stand between.
        shared_by: how many nodes read what comes from the DQ of its activation; 0 without one.
        stored_int8: the weight is an INT8 constant followed by a DQ, not a floating one followed by Q and DQ.
        softmax_readers: how many nodes read the softmax that feeds its first operand; 0: none does.
        unique: no other product has this name.
    """

    name: str
    op: str
    output: str
    kind: str
    quantized: tuple[bool, bool]
    output_quantized: bool = False
    shared_by: int = 0
    stored_int8: bool = False
    softmax_readers: int = 0
    unique: bool = True


@dataclass(frozen=True)
class Graph:
    """Nodes in file order, the names of the initializers, and what travels in the file's `metadata_props`."""

    nodes: tuple[Node, ...]
    initializers: frozenset[str]
    metadata: Mapping[str, str] = field(default_factory=dict)


def graph_from_onnx(path: Path) -> Graph:
    """Read the nodes, the initializers' names and the metadata.

    Raises:
        ModelError: the file is missing, cut short, or no ONNX model.
    """
    try:
        content = memoryview(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    try:
        fields = list(_fields(content))
        (graph,) = (value for number, value in fields if number == MODEL_GRAPH)
        if not any(number == MODEL_OPSET for number, _ in fields):
            raise ValueError("no opset")
        members = list(_fields(graph))
        nodes = tuple(_node(value) for number, value in members if number == GRAPH_NODE)
        initializers = frozenset(_text(value, TENSOR_NAME) for number, value in members if number == GRAPH_INITIALIZER)
        entries = [value for number, value in fields if number == MODEL_METADATA]
        metadata = {_text(entry, ENTRY_KEY): _text(entry, ENTRY_VALUE) for entry in entries}
    except ValueError as error:
        raise ModelError(f"{path} is no whole ONNX model: export it again.") from error
    if not nodes:
        raise ModelError(f"{path} holds no nodes: export the model again.")
    return Graph(nodes, initializers, metadata)


def products_of(graph: Graph) -> tuple[Product, ...]:
    """Every MatMul, Gemm and Conv that is not folded away, in file order."""
    constants = set(graph.initializers)
    for node in graph.nodes:
        # File order is topological order, so one pass finds everything that can be computed ahead of time.
        if all(name in constants for name in node.inputs if name) and (node.inputs or node.op == "Constant"):
            constants.update(node.outputs)
    wiring = _Wiring(graph)
    found = [n for n in graph.nodes if n.op in ("MatMul", "Gemm", "Conv") and not constants.issuperset(n.outputs)]
    names = Counter(n.label for n in found)
    return tuple(wiring.product(n, constants, unique=names[n.label] == 1) for n in found)


class _Wiring:
    """Who makes and who reads each tensor."""

    def __init__(self, graph: Graph) -> None:
        self.maker = {name: node for node in graph.nodes for name in node.outputs}
        self.readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in set(node.inputs):
                self.readers.setdefault(name, []).append(node)

    def product(self, node: Node, constants: set[str], *, unique: bool) -> Product:
        first, second = node.inputs[0], node.inputs[1]
        if first in constants:
            # A constant on the left: the activation is the other operand.
            first, second = second, first
        kind = "convolution" if node.op == "Conv" else "linear" if second in constants else "attention"
        # Probabilities stand on the left of the values that they mix; RPAM's second hop has them on the right.
        softmax = self._source(first, LAYOUT_OPS | QUANTIZATION_OPS)
        probabilities = softmax.outputs[0] if softmax and softmax.op == "Softmax" else ""
        return Product(
            name=node.label,
            op=node.op,
            output=node.outputs[0],
            kind=kind,
            quantized=(self._dequantized(first), self._dequantized(second)),
            output_quantized=self._requantized(node.outputs[0]),
            shared_by=self._shared_by(first),
            stored_int8=kind != "attention" and self._stored_int8(second),
            softmax_readers=len(self.readers.get(probabilities, [])),
            unique=unique,
        )

    def _source(self, tensor: str, across: frozenset[str]) -> Node | None:
        node = self.maker.get(tensor)
        while node is not None and node.op in across:
            node = self.maker.get(node.inputs[0])
        return node

    def _dequantized(self, tensor: str) -> bool:
        source = self._source(tensor, LAYOUT_OPS)
        return source is not None and source.op == "DequantizeLinear"

    def _shared_by(self, tensor: str) -> int:
        if not self._dequantized(tensor):
            return 0
        readers, node = len(self.readers[tensor]), self.maker[tensor]
        while node.op in LAYOUT_OPS:
            readers = max(readers, len(self.readers[node.inputs[0]]))
            node = self.maker[node.inputs[0]]
        return readers

    def _stored_int8(self, weight: str) -> bool:
        dq = self._source(weight, LAYOUT_OPS)
        return dq is not None and dq.op == "DequantizeLinear" and self._source(dq.inputs[0], LAYOUT_OPS) is None

    def _requantized(self, tensor: str) -> bool:
        readers = self.readers.get(tensor, [])
        while len(readers) == 1 and (readers[0].op in LAYOUT_OPS or readers[0].op == "Add"):
            readers = self.readers.get(readers[0].outputs[0], [])
        return len(readers) == 1 and readers[0].op == "QuantizeLinear"


def _node(content: memoryview) -> Node:
    fields = list(_fields(content))
    texts = {
        number: tuple(str(value, "utf-8") for key, value in fields if key == number)
        for number in (NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP)
    }
    outputs = texts[NODE_OUTPUT]
    if not texts[NODE_OP] or not outputs:
        raise ValueError("a node without type or output")
    name = "".join(texts[NODE_NAME]) or f"node_of_{outputs[0]}"
    return Node(name, texts[NODE_OP][0], texts[NODE_INPUT], outputs)


def _text(content: memoryview, number: int) -> str:
    return "".join(str(value, "utf-8") for key, value in _fields(content) if key == number)


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each length-delimited field; numbers are skipped. ValueError: no protobuf, or cut short."""
    position = 0
    while position < len(content):
        tag, position = _varint(content, position)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            _, position = _varint(content, position)
            continue
        if wire == BYTES:
            size, position = _varint(content, position)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + size > len(content):
            raise ValueError("cut short")
        if wire == BYTES:
            yield number, content[position : position + size]
        position += size


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(content) and shift < 64:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("cut short")
