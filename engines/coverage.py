"""Whether an engine was compiled as its ONNX file asks for.

Requests are read from the ONNX file alone:
1. A product whose both operands come through Q/DQ asks for INT8.
2. A product whose both operands are FP16 (or BF16) asks for that type; FP32 falls short of it, and so does `unknown`.
3. Attention (two products with a softmax between) asks for one fused kernel where a product of it is asked for in FP16
   or INT8. In FP32 it asks for nothing, because no builder fuses it: that is a loss which `lctr inspect` tells, and a
   request where the caller wants every attention fused.

Coverage is the number of requests met over the number of requests; it is 1 where there are none.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from engines.inspection import Inspection, Loss, ProductReport
from engines.losses import falls_short
from toolchain.errors import BackendError

NARROW = ("int8", "fp16", "bf16")
FUSIBLE = ("int8", "fp16")
FUSED = "one fused kernel"


@dataclass(frozen=True)
class Request:
    """Something that the ONNX file asks for.

    Attributes:
        name: the ONNX node; both, for attention.
        asked: a type, or `one fused kernel`.
        got: what was compiled, in the same words.
        met: whether that is as good.
        loss: why not; None where it is.
    """

    name: str
    asked: str
    got: str
    met: bool
    loss: Loss | None = None


@dataclass(frozen=True)
class Coverage:
    """All requests of a file, in its order, attention last."""

    requests: tuple[Request, ...]

    @property
    def missed(self) -> tuple[Request, ...]:
        """What was not got."""
        return tuple(r for r in self.requests if not r.met)

    @property
    def share(self) -> float:
        """Requests met, 0 to 1; 1 where there are none."""
        return 1 - len(self.missed) / len(self.requests) if self.requests else 1.0

    def __str__(self) -> str:
        """`9 of 10 requests met (8 of 8 int8, 1 of 2 fp16)`."""
        parts = []
        for asked in dict.fromkeys(r.asked for r in self.requests):
            alike = [r.met for r in self.requests if r.asked == asked]
            parts.append(f"{sum(alike)} of {len(alike)} {asked}")
        met = len(self.requests) - len(self.missed)
        return f"{met} of {len(self.requests)} requests met ({', '.join(parts)})" if parts else "nothing was asked for"


def coverage_of(found: Inspection, *, every_attention: bool = False) -> Coverage:
    """What the ONNX file asks for, and whether it was got.

    Args:
        found: what was compiled.
        every_attention: attention in FP32 asks to be fused, too.
    """
    types = tuple(_of_type(p) for p in found.products if p.asked in NARROW)
    return Coverage((*types, *_of_attention(found, every_attention=every_attention)))


def require(found: Inspection, engine: str, least: float, *, every_attention: bool = False) -> None:
    """Refuse an engine that has less of what was asked for.

    Args:
        found: what was compiled.
        engine: what the message calls it.
        least: share of the requests that must be met, 0 to 1.
        every_attention: see `coverage_of`.

    Raises:
        BackendError: less is met; names every node with the reason and what to do.
    """
    coverage = coverage_of(found, every_attention=every_attention)
    if coverage.share >= least:
        return
    told = [f"  {r.name}: {r.asked} asked for, {r.got} compiled: {_explained(r.loss)}" for r in coverage.missed]
    share = f"{coverage.share:.3f} of them where --min-coverage is {least:g}"
    summary = f"{engine} is not what its ONNX file asks for: {coverage}, {share}: follow the list, or accept less."
    raise BackendError("\n".join([summary, *told]))


def _of_type(product: ProductReport) -> Request:
    met = not falls_short(product.asked, product.type)
    return Request(product.name, product.asked, product.type, met, None if met else product.loss)


def _of_attention(found: Inspection, *, every_attention: bool) -> Iterator[Request]:
    for pair in found.attention.values():
        if every_attention or any(p.asked in FUSIBLE for p in pair):
            met = all(p.fused for p in pair)
            loss = None if met else next((p.loss for p in pair if p.loss), None)
            name = " and ".join(p.name for p in pair)
            yield Request(name, FUSED, FUSED if met else "separate kernels", met, loss)


def _explained(loss: Loss | None) -> str:
    return f"{loss.reason}; {loss.fix}" if loss else "the reason is not known"
