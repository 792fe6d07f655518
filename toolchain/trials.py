"""One graph in every mixture of INT8 and float: built as asked, measured once, and remembered."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.files import write_onnx
from exporters.placement import Left as LeftNode
from exporters.placement import Placement, name_of
from exporters.qdq import Quantized, qdq_from_float
from toolchain.ledger import Ledger
from toolchain.probe import Probe, Quality
from toolchain.progress import Progress
from toolchain.sensitivity import Left, Spent
from toolchain.units import Units

if TYPE_CHECKING:
    import onnx

TIMED = 3
"""New evaluations after which the time that the rest will take is told."""


class Mixtures:
    """Builds a graph with some units left float.

    Args:
        model: float, and left as it is.
        placement: of everything that may be quantized.
        units: its products by unit.
        amax: activation tensor -> range.
        reason: why a unit stays float, for the report.
    """

    def __init__(
        self, model: "onnx.ModelProto", placement: Placement, units: Units, amax: Mapping[str, float], reason: str
    ) -> None:
        self._model, self._placement, self._units, self._amax = model, placement, units, amax
        self._reason = reason
        # Of nodes that share a name, the first.
        self._order = {name_of(node): k for k, node in reversed([*enumerate(model.graph.node)])}

    def build(self, left: Left) -> "tuple[onnx.ModelProto, Quantized]":
        """The graph in which `left` stays float and everything else that may be is quantized."""
        outputs = {site.output for unit in left for site in self._units[unit]}
        sites = tuple(site for site in self._placement.sites if site.output not in outputs)
        moved = [LeftNode(s.name, s.kind, self._reason) for s in self._placement.sites if s.output in outputs]
        nodes = sorted((*self._placement.left, *moved), key=lambda node: self._order[node.name])
        placement = replace(self._placement, sites=sites, left=tuple(nodes))
        return qdq_from_float(self._model, placement, self._amax)


class Trials:
    """Measures mixtures, none of them twice.

    Args:
        mixtures: what to build.
        probe: what to measure with.
        ledger: where measurements are kept.
        limit: evaluations in all, kept ones included.
        output: where the chosen graph is written; the others are measured beside it.
        announce: told how long the rest will take, once that is known.
        progress: told after each evaluation.
    """

    def __init__(
        self,
        mixtures: Mixtures,
        probe: Probe,
        ledger: Ledger,
        limit: int,
        output: Path,
        announce: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self._mixtures, self._probe, self._ledger = mixtures, probe, ledger
        self._limit, self._output = limit, output
        self._announce, self._progress = announce, progress
        self._kept, self._start = len(ledger), time.monotonic()

    def measure(self, left: Left) -> Quality:
        """What the graph with `left` in float costs, from the ledger where it stands there.

        Raises:
            Spent: no evaluation is left.
        """
        found = self._ledger.get(left)
        if found is not None:
            return found
        if len(self._ledger) >= self._limit:
            raise Spent
        found = self._measured(left, self._output.with_name("candidate.onnx"))
        self._tell()
        return found

    def finish(self, left: Left) -> Quality:
        """Write the chosen graph to its place, and measure it there, whatever was measured of it before."""
        return self._measured(left, self._output)

    def _measured(self, left: Left, path: Path) -> Quality:
        model, _ = self._mixtures.build(left)
        write_onnx(model, path)
        quality = self._probe.quality(path)
        self._ledger.add(left, quality)
        return quality

    def _tell(self) -> None:
        done, new = len(self._ledger), len(self._ledger) - self._kept
        self._progress(done, self._limit)
        if new == TIMED:
            seconds = (time.monotonic() - self._start) / new
            rest = seconds * (self._limit - done)
            self._announce(f"{seconds:.1f} s an evaluation: at most {_duration(rest)} to go.")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
