"""The wiring of an ONNX file: its nodes, and what it says of the types of its tensors.

A deployment machine has no `onnx` package, and only names and edges are needed, so the few protobuf fields that hold
them are read here directly (field numbers from onnx.proto3). Weights are skipped. Nodes inside the bodies of If, Loop
and Scan are not listed: no model of ours has them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolchain.errors import ModelError

MODEL_GRAPH, MODEL_OPSET, MODEL_METADATA = 7, 8, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUE = 1, 5, 11, 12, 13
TENSOR_TYPE, TENSOR_NAME = 2, 8
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TYPE_ELEMENT = 1, 2, 1, 1
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP, NODE_ATTRIBUTE = 1, 2, 3, 4, 5
ATTRIBUTE_NAME, ATTRIBUTE_INTEGER, ATTRIBUTE_TENSOR = 1, 3, 5

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

ELEMENTS = {1: "fp32", 2: "uint8", 3: "int8", 10: "fp16", 11: "fp64", 16: "bf16"}
"""ONNX's numbers of element types in our words; the others are no type of a matrix product."""


@dataclass(frozen=True)
class Node:
    """One ONNX node: `label` is its name, or `node_of_<first output>` (as TensorRT says) where it has none."""

    label: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """What is read of a file.

    Attributes:
        nodes: in file order, which is topological.
        initializers: their names.
        metadata: what travels in the file's `metadata_props`.
        types: tensor -> element type as in `ELEMENTS`, where the file says it: of inputs, outputs, initializers and
            annotated values, and of what Cast and Constant make.
    """

    nodes: tuple[Node, ...]
    initializers: frozenset[str]
    metadata: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)


def graph_from_onnx(path: Path) -> Graph:
    """Read the nodes, the initializers' names, the types and the metadata.

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
        types = {name: type_ for number, value in members for name, type_ in _types(number, value)}
        entries = [value for number, value in fields if number == MODEL_METADATA]
        metadata = {_text(entry, ENTRY_KEY): _text(entry, ENTRY_VALUE) for entry in entries}
    except ValueError as error:
        raise ModelError(f"{path} is no whole ONNX model: export it again.") from error
    if not nodes:
        raise ModelError(f"{path} holds no nodes: export the model again.")
    return Graph(nodes, initializers, metadata, types)


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


def _types(number: int, member: memoryview) -> Iterator[tuple[str, str]]:
    """The names and element types that a member of the graph states."""
    if number == GRAPH_INITIALIZER:
        yield from _typed(_text(member, TENSOR_NAME), _integer(member, TENSOR_TYPE))
    elif number in (GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUE):
        element = _integer(_inside(_inside(member, VALUE_TYPE), TYPE_TENSOR), TYPE_ELEMENT)
        yield from _typed(_text(member, VALUE_NAME), element)
    elif number == GRAPH_NODE and _text(member, NODE_OP) in ("Cast", "Constant"):
        for key, attribute in _fields(member):
            name = _text(attribute, ATTRIBUTE_NAME) if key == NODE_ATTRIBUTE else ""
            if name == "to":
                yield from _typed(_text(member, NODE_OUTPUT), _integer(attribute, ATTRIBUTE_INTEGER))
            elif name == "value":
                tensor = _inside(attribute, ATTRIBUTE_TENSOR)
                yield from _typed(_text(member, NODE_OUTPUT), _integer(tensor, TENSOR_TYPE))


def _typed(name: str, element: int) -> Iterator[tuple[str, str]]:
    if element in ELEMENTS:
        yield name, ELEMENTS[element]


def _text(content: memoryview, number: int) -> str:
    return "".join(str(value, "utf-8") for key, value in _fields(content) if key == number)


def _inside(content: memoryview, number: int) -> memoryview:
    """The message in this field, empty where there is none."""
    return next((value for key, value in _fields(content) if key == number), memoryview(b""))


def _integer(content: memoryview, number: int) -> int:
    """The number in this field, 0 where there is none: protobuf's own default."""
    return next((value for key, value in _members(content) if key == number and isinstance(value, int)), 0)


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each length-delimited field. ValueError: no protobuf, or cut short."""
    for number, value in _members(content):
        if not isinstance(value, int):
            yield number, value


def _members(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Every field but those of fixed width, which hold nothing that is read here."""
    position = 0
    while position < len(content):
        tag, position = _varint(content, position)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = _varint(content, position)
            yield number, value
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
