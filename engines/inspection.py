"""What is known of each matrix product in an engine: in which type it is computed, by which kernel, what was lost."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engines.products import CONVOLUTION, LINEAR, UNKNOWN
from toolchain.errors import ArtifactError

COMPILED = "compiled ahead of time, not run on a GPU"
RAN = "ran on this machine's CPU"


@dataclass(frozen=True)
class Loss:
    """Why a product is not as fast as it could be, what to do, and the rule that says so: three short clauses."""

    reason: str
    fix: str
    rule: str


@dataclass(frozen=True)
class ProductReport:
    """One matrix product of the ONNX file.

    Attributes:
        name: the ONNX node.
        op: its operator.
        kind: `linear`, `convolution`, `attention` or `activation product`, as in `engines.products`.
        type: what the multiplication is done in: `int8`, `fp16`, `bf16`, `fp32`, or `unknown`.
        kernel: the kernel or fused layer that does it; empty where none was found.
        loss: why it is unknown, worse than asked, not INT8 (where one operand is constant) or not fused (attention);
            None otherwise.
        asked: the type that the ONNX file asks for.
        softmax: for attention, what the softmax between the two products of the pair makes; empty otherwise.
        fused: it is part of a fused attention kernel.
    """

    name: str
    op: str
    kind: str
    type: str
    kernel: str
    loss: Loss | None = None
    asked: str = UNKNOWN
    softmax: str = ""
    fused: bool = False


@dataclass(frozen=True)
class NodeReport:
    """Where one node of the ONNX file went, of whatever operator.

    Attributes:
        name: the ONNX node.
        op: its operator.
        kernels: the compiled layers that name it; none where it became part of a neighbour or of nothing.
        types: what these layers write. What a fused kernel computes with inside is not told.
    """

    name: str
    op: str
    kernels: tuple[str, ...]
    types: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What is in an engine.

    Attributes:
        backend: whose engine it is.
        evidence: where this knowledge is from, `COMPILED` or `RAN`.
        products: in the order of the ONNX file.
        layers: number of compiled layers, or of nodes that ran.
        fused_attention: number of fused attention kernels.
        weight_bytes: type -> bytes of the constants that the layers read, each counted once; None: not known.
        activation_bytes: what the layers write in one run, each tensor counted once (traffic, not the peak); None: not
            known.
        untold: what is not known of these totals, and why.
        nodes: every node that is not constant, in the order of the ONNX file; empty where only products are known.
    """

    backend: str
    evidence: str
    products: tuple[ProductReport, ...]
    layers: int
    fused_attention: int
    weight_bytes: Mapping[str, int] | None = None
    activation_bytes: int | None = None
    untold: tuple[str, ...] = ()
    nodes: tuple[NodeReport, ...] = ()

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Kind -> type -> number of products."""
        kinds = sorted({p.kind for p in self.products})
        return {kind: dict(sorted(Counter(p.type for p in self.products if p.kind == kind).items())) for kind in kinds}

    @property
    def losses(self) -> tuple[ProductReport, ...]:
        """The products with something to gain."""
        return tuple(p for p in self.products if p.loss)

    @property
    def attention(self) -> dict[str, tuple[ProductReport, ...]]:
        """Softmax -> the products before and behind it, which one fused kernel could do."""
        softmaxes = dict.fromkeys(p.softmax for p in self.products if p.softmax)
        return {name: tuple(p for p in self.products if p.softmax == name) for name in softmaxes}

    @property
    def totals(self) -> dict[str, Any]:
        """The figures of the whole engine; None for what is not known.

        `int8` counts the products in INT8, `int8_asked` those whose both operands have Q/DQ, `int8_possible` those
        with a constant operand or both operands with Q/DQ.
        """
        asked = [p for p in self.products if p.asked == "int8"]
        possible = [p for p in self.products if p.asked == "int8" or p.kind in (LINEAR, CONVOLUTION)]
        attention = self.attention.values()
        return {
            "int8": sum(p.type == "int8" for p in possible),
            "int8_asked": len(asked),
            "int8_possible": len(possible),
            "attention_fused": sum(all(p.fused for p in pair) for pair in attention),
            "attention_possible": len(attention),
            "layers": self.layers,
            "weight_bytes": sum(self.weight_bytes.values()) if self.weight_bytes is not None else None,
            "activation_bytes": self.activation_bytes,
        }

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; `inspection_from_dict` reads it back."""
        return {**asdict(self), "counts": self.counts, "totals": self.totals}


def inspection_from_dict(record: Mapping[str, Any]) -> Inspection:
    """The inverse of `Inspection.as_dict`.

    Raises:
        ArtifactError: the record has other fields.
    """
    try:
        products = tuple(
            ProductReport(**{**p, "loss": Loss(**p["loss"]) if p["loss"] else None}) for p in record["products"]
        )
        nodes = tuple(NodeReport(n["name"], n["op"], tuple(n["kernels"]), tuple(n["types"])) for n in record["nodes"])
        read = ("products", "nodes", "untold", "counts", "totals")
        fields = {k: v for k, v in record.items() if k not in read}
        return Inspection(**fields, products=products, nodes=nodes, untold=tuple(record["untold"]))
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"What was compiled is recorded unreadably ({error}): build the engine again.") from error
