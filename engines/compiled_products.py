"""From ONNX products and a layer listing of TensorRT-RTX or TensorRT to what each product was compiled to.

Rules, tried in this order for a product (measured on TensorRT-RTX 1.7.1):
1. A `gemm` or `correlation` layer that names the node multiplies its first input by its first constant (attention: by
   its second input). Where both have one type, that is the type of the product.
2. A fused attention kernel (`_gemm_mha_...`) that names the node multiplies in the one type that its inputs share.
3. A `runtime_fusion` with an `Fc` step that names the node: a `Cast` before `Fc` dequantizes, so the product is done in
   the only floating type around; without one, in the only type that inputs and constants share.
4. A generated kernel with `MulSum` that names the node is a vector product, in the only type around.
5. A generated kernel with multiplications and then additions (`MulMulMulMulAddAddAdd`), the only layer that names the
   node, is a product of few terms written out, in the only floating type around. INT8 among its operands was
   dequantized where there is a `Cast`; without one the type is not told.
Everything else is `unknown`, with the reason. Nothing is guessed.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engines.inspection import COMPILED, Inspection, Loss, NodeReport, ProductReport
from engines.layer_dump import Layer, LayerDump, Tensor
from engines.losses import fusion_loss, type_loss, unknown_loss
from engines.onnx_graph import Node
from engines.products import FLOATS, UNKNOWN, Product

FC = re.compile(r"Fc(?![a-z])")
WRITTEN_OUT = re.compile(r"(Mul){2,}Add")
ELEMENT_BYTES = {"int8": 1, "fp8": 1, "Bool": 1, "fp16": 2, "bf16": 2, "fp32": 4, "Int32": 4, "Int64": 8}


@dataclass(frozen=True)
class _Finding:
    """The type and kernel of a product, whether that is fused attention, and `why` it is unknown where it is."""

    type: str
    kernel: str = ""
    why: str = ""
    fused: bool = False


def inspection_from_dump(
    backend: str, products: Sequence[Product], dump: LayerDump | None, nodes: Sequence[Node] = ()
) -> Inspection:
    """What the listing says of each product, and of `nodes`; without a listing everything is unknown."""
    findings = [_finding(product, dump) for product in products]
    unfused = _unfused(products, findings)
    kernels = dump.kernels if dump else ()
    weights, activations, untold = _bytes(dump)
    return Inspection(
        backend=backend,
        evidence=COMPILED,
        products=tuple(_report(p, f, unfused.get(p.softmax)) for p, f in zip(products, findings, strict=True)),
        layers=len(kernels),
        fused_attention=sum(_is_fused_attention(layer) for layer in kernels),
        weight_bytes=weights,
        activation_bytes=activations,
        untold=untold,
        nodes=tuple(_node_report(node, kernels) for node in nodes),
    )


def _node_report(node: Node, kernels: Sequence[Layer]) -> NodeReport:
    naming = [layer for layer in kernels if node.label in layer.origins]
    types = dict.fromkeys(t.type for layer in naming for t in layer.outputs)
    return NodeReport(node.label, node.op, tuple(dict.fromkeys(layer.name for layer in naming)), tuple(types))


def _report(product: Product, found: _Finding, unfused: Loss | None) -> ProductReport:
    if found.type == UNKNOWN:
        loss: Loss | None = unknown_loss(product, found.why)
    else:
        loss = unfused or type_loss(product, found.type)
    return ProductReport(
        name=product.name,
        op=product.op,
        kind=product.kind,
        type=found.type,
        kernel=found.kernel,
        loss=loss,
        asked=product.asked,
        softmax=product.softmax,
        fused=found.fused,
    )


def _finding(product: Product, dump: LayerDump | None) -> _Finding:
    if dump is None:
        return _Finding(UNKNOWN, why="the builder logged no layer listing")
    if not product.unique:
        return _Finding(UNKNOWN, why=f"several nodes are named {product.name}")
    naming = [layer for layer in dump.layers if product.name in layer.origins]
    for belongs, type_of in RULES:
        if doing := [layer for layer in naming if belongs(layer)]:
            types = {type_of(layer, product) for layer in doing}
            kernel, fused = " and ".join(layer.name for layer in doing), belongs is _is_fused_attention
            if len(types) == 1 and (type_ := types.pop()) is not None:
                return _Finding(type_, kernel, fused=fused)
            return _Finding(UNKNOWN, kernel, "its kernel mixes types in a way that the listing does not explain", fused)
    if len(naming) == 1 and (type_ := _written_out_type(naming[0])):
        return _Finding(type_, naming[0].name)
    if naming:
        return _Finding(UNKNOWN, why=f"the listing names it only in {', '.join(layer.name for layer in naming)}")
    unread = f" ({len(dump.unread)} of its lines could not be read)" if dump.unread else ""
    return _Finding(UNKNOWN, why=f"the builder's layer listing does not name it{unread}")


def _is_library_product(layer: Layer) -> bool:
    return layer.type in ("gemm", "correlation")


def _library_type(layer: Layer, product: Product) -> str | None:
    second = layer.constants[:1] if product.weighted and layer.constants else layer.inputs[1:2]
    operands = (*layer.inputs[:1], *second)
    return _only_type(operands) if len(operands) == 2 else None


def _is_fused_attention(layer: Layer) -> bool:
    return layer.name.startswith("_gemm_mha")


def _fused_attention_type(layer: Layer, product: Product) -> str | None:
    return _only_type(layer.inputs)


def _is_runtime_fusion(layer: Layer) -> bool:
    return layer.type == "runtime_fusion" and FC.search(layer.name) is not None


def _runtime_fusion_type(layer: Layer, product: Product) -> str | None:
    before = FC.split(layer.name)[0]
    if "Roun" in before:
        # It quantizes before it multiplies: never seen, so not interpreted.
        return None
    if "Cast" in before:
        return _only_type([t for t in _tensors(layer) if t.type != "int8"])
    return _only_type((*layer.inputs, *layer.constants))


def _is_vector_product(layer: Layer) -> bool:
    return layer.type == "kgen" and "MulSum" in layer.name


def _vector_product_type(layer: Layer, product: Product) -> str | None:
    return _only_type(_tensors(layer))


def _written_out_type(layer: Layer) -> str | None:
    if layer.type != "kgen" or not WRITTEN_OUT.search(layer.name):
        return None
    tensors = _tensors(layer)
    if "Cast" not in layer.name and any(t.type not in FLOATS for t in tensors):
        return None
    return _only_type([t for t in tensors if t.type in FLOATS])


def _tensors(layer: Layer) -> tuple[Tensor, ...]:
    return (*layer.inputs, *layer.constants, *layer.outputs)


def _only_type(tensors: Sequence[Tensor]) -> str | None:
    types = {t.type for t in tensors}
    return types.pop() if len(types) == 1 else None


Rule = tuple[Callable[[Layer], bool], Callable[[Layer, Product], str | None]]
RULES: tuple[Rule, ...] = (
    (_is_library_product, _library_type),
    (_is_fused_attention, _fused_attention_type),
    (_is_runtime_fusion, _runtime_fusion_type),
    (_is_vector_product, _vector_product_type),
)


def _unfused(products: Sequence[Product], findings: Sequence[_Finding]) -> Mapping[str, Loss]:
    """Softmax -> why the products around it are not one kernel; where a type is unknown, that is what is lost."""
    pairs: dict[str, list[tuple[Product, _Finding]]] = {}
    for product, finding in zip(products, findings, strict=True):
        if product.softmax:
            pairs.setdefault(product.softmax, []).append((product, finding))
    return {
        softmax: fusion_loss([p for p, _ in pair], [f.type for _, f in pair])
        for softmax, pair in pairs.items()
        if not all(f.fused for _, f in pair)
    }


def _bytes(dump: LayerDump | None) -> tuple[dict[str, int] | None, int | None, tuple[str, ...]]:
    """Weight bytes by type, activation bytes, and what is not known of them."""
    if dump is None:
        return None, None, ("weight and activation bytes: the builder logged no layer listing",)
    if dump.unread:
        return None, None, (f"weight and activation bytes: {len(dump.unread)} lines of the listing could not be read",)
    weights = {t.name: t for layer in dump.kernels for t in layer.constants}.values()
    written = {t.name: t for layer in dump.kernels for t in layer.outputs}.values()
    odd = sorted({t.type for t in (*weights, *written) if t.type not in ELEMENT_BYTES})
    if odd:
        return None, None, (f"weight and activation bytes: the listing has elements of type {odd[0]}",)
    untold = () if dump.constants_told else ("weight bytes: the listing names no weights",)
    totals = Counter[str]()
    for tensor in weights:
        totals[tensor.type] += _size(tensor)
    known = dict(totals) if dump.constants_told else None
    if dynamic := sum(-1 in t.shape for t in written):
        why = f"{dynamic} of {len(written)} tensors have a dynamic size; build for one batch size to know"
        return known, None, (*untold, f"activation bytes: {why}")
    return known, sum(_size(t) for t in written), untold


def _size(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * ELEMENT_BYTES[tensor.type]
