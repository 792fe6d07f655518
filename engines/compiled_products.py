"""From ONNX products and a TensorRT-RTX layer listing to what each product was compiled to.

Rules, tried in this order for a product (measured on TensorRT-RTX 1.7.1):
1. A `gemm` or `correlation` layer that names the node multiplies its first input by its first constant (attention: by
   its second input). Where both have one type, that is the type of the product.
2. A fused attention kernel (`_gemm_mha_...`) that names the node multiplies in the one type that its inputs share.
3. A `runtime_fusion` with an `Fc` step that names the node: a `Cast` before `Fc` dequantizes, so the product is done in
   the only floating type around; without one, in the only type that inputs and constants share.
4. A generated kernel with `MulSum` that names the node is a vector product, in the only type around.
Everything else is `unknown`, with the reason. Nothing is guessed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from engines.inspection import COMPILED, UNKNOWN, Inspection, Loss, ProductReport, missing_q_dq
from engines.layer_dump import Layer, LayerDump, Tensor
from engines.onnx_graph import Product

FC = re.compile(r"Fc(?![a-z])")
HOST_LAYER = "shape_call"
"""Shape arithmetic on the host: no kernel."""


@dataclass(frozen=True)
class _Finding:
    """The type and kernel of a product; `why` it is unknown where it is."""

    type: str
    kernel: str = ""
    why: str = ""


def inspection_from_dump(backend: str, products: Sequence[Product], dump: LayerDump | None) -> Inspection:
    """What the listing says of each product; without a listing everything is unknown."""
    findings = [_finding(product, dump) for product in products]
    attention = _attention_losses(products, findings)
    layers = dump.layers if dump else ()
    return Inspection(
        backend=backend,
        evidence=COMPILED,
        products=tuple(
            ProductReport(p.name, p.op, p.kind, f.type, f.kernel, attention[i] if i in attention else _loss(p, f))
            for i, (p, f) in enumerate(zip(products, findings, strict=True))
        ),
        layers=sum(layer.type != HOST_LAYER for layer in layers),
        fused_attention=sum(_is_fused_attention(layer) for layer in layers),
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
            kernel = " and ".join(layer.name for layer in doing)
            if len(types) == 1 and (type_ := types.pop()) is not None:
                return _Finding(type_, kernel)
            return _Finding(UNKNOWN, kernel, "its kernel mixes types in a way that the listing does not explain")
    if naming:
        return _Finding(UNKNOWN, why=f"the listing names it only in {', '.join(layer.name for layer in naming)}")
    unread = f" ({len(dump.unread)} of its lines could not be read)" if dump.unread else ""
    return _Finding(UNKNOWN, why=f"the builder's layer listing does not name it{unread}")


def _is_library_product(layer: Layer) -> bool:
    return layer.type in ("gemm", "correlation")


def _library_type(layer: Layer, product: Product) -> str | None:
    second = layer.inputs[1:2] if product.kind == "attention" or not layer.constants else layer.constants[:1]
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


def _loss(product: Product, finding: _Finding) -> Loss | None:
    """The loss of one product by itself; attention that was not fused is judged in pairs."""
    if finding.type == UNKNOWN:
        fix = "profile the engine on its GPU" if product.unique else "give every node a name of its own"
        return Loss(finding.why, fix)
    if product.kind == "attention" or finding.type == "int8":
        return None
    missing = missing_q_dq(product)
    if missing is not None:
        return missing
    done = f"the builder multiplied in {finding.type} although both operands have Q/DQ"
    if product.stored_int8:
        # Seen in 1.7.1 for a packed qkv that is reshaped to five dimensions and then sliced.
        return Loss(
            f"{done}; the weight is stored as INT8", "store the weight in floating point and add Q before the DQ"
        )
    return Loss(done, "use one scale for the input and one per output channel for the weight")


def _attention_losses(products: Sequence[Product], findings: Sequence[_Finding]) -> Mapping[int, Loss]:
    """Why attention was not fused, by index: each pair is a QK product and the PV product that reads its softmax."""
    attention = [i for i, p in enumerate(products) if p.kind == "attention"]
    losses: dict[int, Loss] = {}
    for qk, pv in pairwise(attention):
        pair = (products[qk], products[pv])
        if not pair[1].softmax_readers or pair[0].softmax_readers:
            continue
        unfused = [i for i in (qk, pv) if findings[i].type != UNKNOWN and "_gemm_mha" not in findings[i].kernel]
        losses |= {i: _fusion_loss(*pair, findings[qk].type) for i in unfused}
    return losses


def _fusion_loss(qk: Product, pv: Product, type_: str) -> Loss:
    if pv.softmax_readers > 1:
        return Loss(
            f"not fused: {pv.softmax_readers} nodes read the softmax", "compute the second use outside the attention"
        )
    if len({*qk.quantized, *pv.quantized}) > 1:
        return Loss("not fused: Q/DQ on some of q, k, v and softmax only", "put Q/DQ on all four or on none")
    if type_ == "fp32":
        return Loss("not fused: the product is done in fp32", "convert what is float in the ONNX file to FP16")
    return Loss("not fused; the builder gives no reason", "scale q before the product and name the shapes fixed")
