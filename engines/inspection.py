"""What is known of each matrix product in an engine: in which type it is computed, by which kernel, what was lost."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engines.onnx_graph import Product
from toolchain.errors import ArtifactError

UNKNOWN = "unknown"
COMPILED = "compiled ahead of time, not run on a GPU"
RAN = "ran on this machine's CPU"


@dataclass(frozen=True)
class Loss:
    """Why a product is not as fast as it could be, and what to do: two short clauses."""

    reason: str
    fix: str


@dataclass(frozen=True)
class ProductReport:
    """One matrix product of the ONNX file.

    Attributes:
        name: the ONNX node.
        op: its operator.
        kind: `linear`, `convolution` or `attention`.
        type: what the multiplication is done in: `int8`, `fp16`, `bf16`, `fp32`, or `unknown`.
        kernel: the kernel or fused layer that does it; empty where none was found.
        loss: for a product that is not INT8 (attention: not fused, or unknown), why; None otherwise.
    """

    name: str
    op: str
    kind: str
    type: str
    kernel: str
    loss: Loss | None = None


@dataclass(frozen=True)
class Inspection:
    """What is in an engine.

    Attributes:
        backend: whose engine it is.
        evidence: where this knowledge is from, `COMPILED` or `RAN`.
        products: in the order of the ONNX file.
        layers: number of compiled layers, or of nodes that ran.
        fused_attention: number of fused attention kernels.
    """

    backend: str
    evidence: str
    products: tuple[ProductReport, ...]
    layers: int
    fused_attention: int

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Kind -> type -> number of products."""
        kinds = sorted({p.kind for p in self.products})
        return {kind: dict(sorted(Counter(p.type for p in self.products if p.kind == kind).items())) for kind in kinds}

    @property
    def losses(self) -> tuple[ProductReport, ...]:
        """The products with something to gain."""
        return tuple(p for p in self.products if p.loss)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; `inspection_from_dict` reads it back."""
        return {**asdict(self), "counts": self.counts}


def inspection_from_dict(record: Mapping[str, Any]) -> Inspection:
    """The inverse of `Inspection.as_dict`.

    Raises:
        ArtifactError: the record has other fields.
    """
    try:
        products = tuple(
            ProductReport(**{**p, "loss": Loss(**p["loss"]) if p["loss"] else None}) for p in record["products"]
        )
        fields = {k: v for k, v in record.items() if k not in ("products", "counts")}
        return Inspection(**fields, products=products)
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"What was compiled is recorded unreadably ({error}): build the engine again.") from error


def missing_q_dq(product: Product) -> Loss | None:
    """Which operand of a linear or convolution lacks Q/DQ; None where both have it."""
    activation, weight = product.quantized
    if activation and weight:
        return None
    missing = "the weight has" if activation else "the input has" if weight else "input and weight have"
    return Loss(f"{missing} no Q/DQ", f"put Q/DQ on both operands of {product.name}")
