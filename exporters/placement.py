"""Where Q/DQ stands: the policy. It reads a float graph and names what is quantized, what is not, and why.

Rules, in the order in which they are asked of each node:
1. Only products are sites: MatMul, Gemm and Conv. Softmax, LayerNorm and the rest of a transformer are left: their
   values span too many magnitudes for 8 bits (spec/lctr.md, "Numbers that FP16 cannot hold"). BatchNorm is left where
   the exporter did not fold it: it scales whole channels, and the convolution's weight has a scale for each already.
2. Residual adds are left: quantizing them gains no speed and has cost one ViT all of its accuracy (spec/fdda.md). An
   addition of a constant, such as a bias, is no site either and is not mentioned.
3. A node that the user keeps in float is left, routing first of all. A pattern that matches no product is an error.
4. Attention is quantized whole or not at all: q, k, v and the probabilities, or none of them, because in part it loses
   the fused kernel (spec/tensorrt.md). `none` is the default; `all` quantizes every attention. A pattern of rule 3
   that keeps one product of an attention keeps both. Other products of two activations (RPAM's hops) are left.
5. The weight is the second operand. A constant first operand is left: engines quantize activation x weight only.
6. A weight is constant if it is an initializer, or made of constants by data movement alone.
7. A MatMul or Gemm weight is 2-D: (K, N), or (N, K) for Gemm with transB. Gemm with transA is left. Others are left.
8. The scale of a weight is per output channel: axis 1 of (K, N), axis 0 of (N, K) and of a convolution's weight.
9. Transposed convolutions, einsums and whatever stands inside If, Loop and Scan are left: not covered.
10. A model of an opset before 19 is refused: Q/DQ takes no FP16 scales there.
"""

import ast
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx

from exporters.attention import attention_products
from exporters.constants import Constants
from toolchain.errors import ModelError, UsageError, chosen

LEAST_OPSET = 19
PRODUCTS = ("MatMul", "Gemm", "Conv")
LEFT_OPERATORS = {
    "Softmax": "softmax stays float: 8 bits move the map (rule 1)",
    "LayerNormalization": "normalization stays float (rule 1)",
    "InstanceNormalization": "normalization stays float (rule 1)",
    "GroupNormalization": "normalization stays float (rule 1)",
    "RMSNormalization": "normalization stays float (rule 1)",
    "BatchNormalization": "it scales the channels of a convolution whose weight has a scale for each (rule 1)",
    "Attention": "attention products: none is quantized, for one alone would lose the fused kernel (rule 4)",
    "ConvTranspose": "transposed convolutions are not covered (rule 9)",
    "Einsum": "einsum is not covered; export it as MatMul (rule 9)",
    "If": "what stands in a control-flow body is not covered (rule 9)",
    "Loop": "what stands in a control-flow body is not covered (rule 9)",
    "Scan": "what stands in a control-flow body is not covered (rule 9)",
}
ATTENTION = {"none": False, "all": True}
"""Which attention is quantized, as a user says it (rule 4)."""
SCOPE_KEY = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Site:
    """One product to quantize.

    Attributes:
        name: of the node, or of its output where the node has none.
        module: dotted path of the torch module that it came from; "" where the exporter recorded none.
        kind: `MatMul`, `Gemm` or `Conv`.
        activation: tensor that gets one scale.
        weight: constant tensor that gets one scale per output channel.
        axis: of the output channels in the weight.
        bias: third operand, "" where there is none; it stays float.
        output: the node's output, unique in the graph.
    """

    name: str
    module: str
    kind: str
    activation: str
    weight: str
    axis: int
    bias: str
    output: str


@dataclass(frozen=True)
class AttentionSite:
    """Both products of one attention: queries x keys, then probabilities x values.

    Attributes:
        names: of the two nodes, or of their outputs where they have none.
        operands: the tensors that each multiplies, four activations of which each gets one scale.
        outputs: of the two nodes, unique in the graph.
    """

    names: tuple[str, str]
    operands: tuple[tuple[str, str], tuple[str, str]]
    outputs: tuple[str, str]


@dataclass(frozen=True)
class Left:
    """One node that stays float.

    Attributes:
        name: of the node, or of its output where the node has none.
        kind: operator.
        reason: in words, with the number of the rule.
    """

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Placement:
    """The policy applied to one graph, each list in graph order."""

    sites: tuple[Site, ...]
    left: tuple[Left, ...]
    attention: tuple[AttentionSite, ...] = ()

    @property
    def activations(self) -> tuple[str, ...]:
        """The tensors to observe, each once: those of the sites in graph order, then those of attention."""
        multiplied = [name for site in self.attention for pair in site.operands for name in pair]
        return tuple(dict.fromkeys([*(site.activation for site in self.sites), *multiplied]))


def placement_from_model(model: onnx.ModelProto, keep_float: Sequence[str] = (), attention: str = "none") -> Placement:
    """Apply the rules to a float graph; the model is not changed.

    Args:
        model: float ONNX model.
        keep_float: glob patterns of products to leave in float (rule 3), each matched against the node's name, its
            torch module's dotted path and its weight's name, case-sensitively: `*_routing_fn_two*`.
        attention: a key of `ATTENTION` (rule 4).

    Raises:
        ModelError: the model is quantized already, or its opset is too old (rule 10).
        UsageError: a pattern matches no product, or another `attention`.
    """
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < LEAST_OPSET:
        raise ModelError(f"The model has opset {opset}: export it with opset {LEAST_OPSET} or later to quantize it.")
    constants = Constants(model)
    whole = chosen("--attention", attention, ATTENTION)
    attention_sites = _attention_sites(model, keep_float) if whole else ()
    in_attention = {output for site in attention_sites for output in site.outputs}
    unmatched = dict.fromkeys(keep_float)
    sites: list[Site] = []
    left: list[Left] = []
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise ModelError(f"Node '{name_of(node)}' is a {node.op_type}: give the float model, not a quantized one.")
        matching = _matching(node, keep_float) if node.op_type in PRODUCTS else []
        for pattern in matching:
            unmatched.pop(pattern, None)
        reason = _reason_to_leave(node, matching, constants, in_attention)
        if reason:
            left.append(Left(name_of(node), node.op_type, reason))
        elif node.op_type in PRODUCTS and node.output[0] not in in_attention:
            sites.append(_site(node))
    if unmatched:
        raise UsageError(
            f"The keep-float pattern '{next(iter(unmatched))}' matches no linear or convolution of the model: "
            "correct it or leave it out."
        )
    return Placement(tuple(sites), tuple(left), attention_sites)


def casts_of(model: onnx.ModelProto, tensor: str) -> tuple[str, ...]:
    """The tensor and whatever is made of it by Cast alone: the same values, the types apart."""
    same = {tensor: None}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in same:
            same[node.output[0]] = None
    return tuple(same)


def name_of(node: onnx.NodeProto) -> str:
    """The node's name, or its first output's where it has none."""
    return node.name or node.output[0]


def module_of(node: onnx.NodeProto) -> str:
    """Dotted path of the torch module that the node came from, as torch.onnx recorded it; "" where it did not."""
    scopes = next((p.value for p in node.metadata_props if p.key == SCOPE_KEY), "[]")
    try:
        # Python's repr of the list of enclosing scopes, outermost first; the last is the node itself.
        path = ast.literal_eval(scopes)[:-1]
    except (SyntaxError, ValueError, TypeError):
        return ""
    return str(path[-1]) if path else ""


def _matching(node: onnx.NodeProto, patterns: Sequence[str]) -> list[str]:
    names = [name_of(node), module_of(node), *node.input[1:2]]
    return [p for p in patterns if any(fnmatchcase(name, p) for name in names if name)]


def _site(node: onnx.NodeProto) -> Site:
    # Rule 8.
    transposed = node.op_type == "Gemm" and _attribute(node, "transB")
    axis = 0 if node.op_type == "Conv" or transposed else 1
    activation, weight, bias = (*node.input, "")[:3]
    return Site(name_of(node), module_of(node), node.op_type, activation, weight, axis, bias, node.output[0])


def _attention_sites(model: onnx.ModelProto, keep_float: Sequence[str]) -> tuple[AttentionSite, ...]:
    """Rule 4: both products of every attention, unless a pattern keeps one of them."""
    pairs = attention_products(model)
    return tuple(
        AttentionSite(
            names=(name_of(scores), name_of(mixing)),
            operands=((scores.input[0], scores.input[1]), (mixing.input[0], mixing.input[1])),
            outputs=(scores.output[0], mixing.output[0]),
        )
        for scores, mixing in pairs
        if not _matching(scores, keep_float) and not _matching(mixing, keep_float)
    )


def _reason_to_leave(
    node: onnx.NodeProto, matching: Sequence[str], constants: Constants, in_attention: Collection[str]
) -> str:
    """Why the node stays float; "" for a site, and for an operator that no one would expect to be quantized."""
    if node.op_type == "Add":
        two_activations = not any(constants.has(name) for name in node.input)
        return "sum of two activations: residual adds stay float (rule 2)" if two_activations else ""
    if node.op_type not in PRODUCTS:
        return LEFT_OPERATORS.get(node.op_type, "")
    if matching:
        return f"kept float by pattern '{matching[0]}' (rule 3)"
    if node.output[0] in in_attention:
        return ""
    first, second = (constants.has(name) for name in node.input[:2])
    if not second:
        if first:
            return "the constant is the first operand, not the second (rule 5)"
        if node.op_type == "MatMul" and in_attention:
            return "product of two activations outside the attention that is quantized whole (rule 4)"
        if node.op_type == "MatMul":
            return "product of two activations: attention products, all or none, here none (rule 4)"
        return f"the weight '{node.input[1]}' is not constant (rule 6)"
    if first:
        return "both operands are constant: compilers fold it (rule 5)"
    if node.op_type == "Gemm" and _attribute(node, "transA"):
        return "Gemm with transA (rule 7)"
    rank = constants.value(node.input[1]).ndim
    if node.op_type != "Conv" and rank != 2:
        return f"the weight '{node.input[1]}' has {rank} axes, not 2 (rule 7)"
    return ""


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((a.i for a in node.attribute if a.name == name), 0)
