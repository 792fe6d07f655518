"""The matrix products of an ONNX file: what each is, and what the file asks it to be computed in.

What a file asks for is read from the file alone: INT8 where both operands come through Q/DQ, otherwise the floating
type that both operands have.

Attention is `softmax(Q K) V`: two products of activations with a softmax between them. Between the first product and
the softmax the scores may be scaled, masked and cast; between the softmax and the left operand of the second there may
be casts, Q/DQ and changes of layout, which mix nothing. Any other product of two activations is an `activation
product`: no compiler has a fused kernel for it that could be lost.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from engines.onnx_graph import Graph, Node

UNKNOWN = "unknown"
LINEAR, CONVOLUTION, ATTENTION, ACTIVATION_PRODUCT = "linear", "convolution", "attention", "activation product"
FLOATS = ("fp16", "bf16", "fp32")

LAYOUT_OPS = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""They move values without changing them: runtimes slide Q and DQ across them."""
QUANTIZATION_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
UNMIXED_OPS = LAYOUT_OPS | QUANTIZATION_OPS | {"Cast"}
SCORE_OPS = UNMIXED_OPS | {"Mul", "Div", "Add", "Sub", "Where", "Clip", "Tanh"}
"""What stands between QK and the softmax: scale, mask, bias, soft cap."""
TYPE_FROM = {"DequantizeLinear": 1, "Where": 1, "CastLike": 1, "OneHot": 2}
"""The operand whose type an operator's result has, where it is not the first."""
TYPE_CHANGED = frozenset(
    {"QuantizeLinear", "Cast", "Constant", "ConstantOfShape", "Shape", "Size", "NonZero", "ArgMax", "ArgMin"}
    | {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "IsNaN", "IsInf", "RandomNormal", "RandomUniform"}
)
"""Operators whose result has a type of its own: known only where the file states it."""


@dataclass(frozen=True)
class Product:
    """A node whose cost is a matrix product.

    Attributes:
        name: the ONNX node's name.
        op: `MatMul`, `Gemm` or `Conv`.
        kind: `linear` or `convolution` (constant weight), `attention` or `activation product` (two activations).
        quantized: per operand (activation and weight; both factors where both are activations), whether it comes from
            a DQ.
        output_quantized: a Q reads the result; an Add (the bias) may stand between.
        shared_by: how many nodes read what comes from the DQ of its activation; 0 without one.
        stored_int8: the weight is an INT8 constant followed by a DQ, not a floating one followed by Q and DQ.
        softmax: for attention, the tensor that the softmax of the pair makes; empty otherwise.
        softmax_readers: how many nodes read that tensor.
        unique: no other product has this name.
        asked: the type that the file asks for: `int8`, `fp16`, `bf16`, `fp32`, or `unknown`.
    """

    name: str
    op: str
    output: str
    kind: str
    quantized: tuple[bool, bool]
    output_quantized: bool = False
    shared_by: int = 0
    stored_int8: bool = False
    softmax: str = ""
    softmax_readers: int = 0
    unique: bool = True
    asked: str = UNKNOWN

    @property
    def weighted(self) -> bool:
        """One operand is constant."""
        return self.kind in (LINEAR, CONVOLUTION)


def computed_nodes(graph: Graph) -> tuple[Node, ...]:
    """The nodes that no compiler can compute ahead of time, in file order."""
    constants = _constants(graph)
    return tuple(node for node in graph.nodes if not constants.issuperset(node.outputs))


def _constants(graph: Graph) -> set[str]:
    constants = set(graph.initializers)
    for node in graph.nodes:
        # File order is topological order, so one pass finds everything that can be computed ahead of time.
        if all(name in constants for name in node.inputs if name) and (node.inputs or node.op == "Constant"):
            constants.update(node.outputs)
    return constants


def products_of(graph: Graph) -> tuple[Product, ...]:
    """Every MatMul, Gemm and Conv that is not folded away, in file order."""
    constants = _constants(graph)
    wiring = _Wiring(graph)
    found = [n for n in computed_nodes(graph) if n.op in ("MatMul", "Gemm", "Conv")]
    names = Counter(n.label for n in found)
    products = [wiring.product(n, constants, unique=names[n.label] == 1) for n in found]
    softmaxes = wiring.attention(p.output for p in products if not p.weighted)
    return tuple(wiring.in_attention(p, softmaxes[p.output]) if p.output in softmaxes else p for p in products)


class _Wiring:
    """Who makes and who reads each tensor, and its type where that is known."""

    def __init__(self, graph: Graph) -> None:
        self.maker = {name: node for node in graph.nodes for name in node.outputs}
        self.readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in set(node.inputs):
                self.readers.setdefault(name, []).append(node)
        self.types = _types(graph)

    def product(self, node: Node, constants: set[str], *, unique: bool) -> Product:
        first, second = node.inputs[0], node.inputs[1]
        if first in constants:
            # A constant on the left: the activation is the other operand.
            first, second = second, first
        quantized = (self._dequantized(first), self._dequantized(second))
        weighted = second in constants
        return Product(
            name=node.label,
            op=node.op,
            output=node.outputs[0],
            kind=CONVOLUTION if node.op == "Conv" else LINEAR if weighted else ACTIVATION_PRODUCT,
            quantized=quantized,
            output_quantized=self._requantized(node.outputs[0]),
            shared_by=self._shared_by(first),
            stored_int8=weighted and self._stored_int8(second),
            unique=unique,
            asked="int8" if all(quantized) else self._common_type(first, second),
        )

    def attention(self, outputs: Iterable[str]) -> dict[str, str]:
        """Of the activation products that make `outputs`, both of each attention -> what the softmax between makes."""
        products, found = set(outputs), dict[str, str]()
        for output in products:
            softmax = self._source(self.maker[output].inputs[0], UNMIXED_OPS)
            if softmax is None or softmax.op != "Softmax":
                continue
            scores = self._scores(softmax.inputs[0], products)
            if scores is not None:
                found |= {scores: softmax.outputs[0], output: softmax.outputs[0]}
        return found

    def in_attention(self, product: Product, softmax: str) -> Product:
        """The product as one of those around the softmax that makes this tensor."""
        return replace(product, kind=ATTENTION, softmax=softmax, softmax_readers=len(self.readers[softmax]))

    def _scores(self, tensor: str, products: set[str]) -> str | None:
        """The nearest of `products` from which `tensor` comes by way of `SCORE_OPS`."""
        seen = [tensor]
        for name in seen:
            if name in products:
                return name
            maker = self.maker.get(name)
            if maker is not None and maker.op in SCORE_OPS:
                seen += [n for n in maker.inputs if n not in seen]
        return None

    def _common_type(self, first: str, second: str) -> str:
        types = {self.types.get(first), self.types.get(second)}
        type_ = types.pop()
        return type_ if not types and type_ in FLOATS else UNKNOWN

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


def _types(graph: Graph) -> Mapping[str, str]:
    """Tensor -> element type: what the file states, carried along by the operators that keep a type."""
    types = dict(graph.types)
    for node in graph.nodes:
        if node.op in TYPE_CHANGED or not node.inputs:
            continue
        source = node.inputs[min(TYPE_FROM.get(node.op, 0), len(node.inputs) - 1)]
        if source in types:
            for output in node.outputs:
                types.setdefault(output, types[source])
    return types
