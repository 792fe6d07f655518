"""The bounds that a user may set on a benchmark, and whether they hold; noise is taken into account.

One rule for all of them: a bound fails where the whole 95 % interval of the figure lies beyond it. Where the bound lies
within the interval, the figure is within noise of the bound: that passes, and is said. A figure that nobody knows
passes no bound. Latency is judged at the smallest batch size, throughput and energy at the largest.

Every engine but the baseline is judged; alone, the baseline is. Intervals are those of `engines.bootstrap`, of a drop
that of `Drop.points`. A single round has no interval; there the figure itself decides.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engines.benchmark import Benchmark, Measurement
from engines.bootstrap import Interval
from toolchain.comparison import Accuracy
from toolchain.errors import BackendUnavailable, GateFailed, ModelError, UsageError
from toolchain.sensitivity import checked_drop


@dataclass(frozen=True)
class Gates:
    """Bounds; None: not asked for.

    Attributes:
        max_drop: points of GT-Known Loc and of Top-1 Loc that may be lost against the reference.
        max_p99: milliseconds.
        min_throughput: images per second.
        max_energy: joules per image.

    Raises:
        UsageError: a negative drop.
    """

    max_drop: float | None = None
    max_p99: float | None = None
    min_throughput: float | None = None
    max_energy: float | None = None

    def __post_init__(self) -> None:
        if self.max_drop is not None:
            checked_drop(self.max_drop)
        if self.min_throughput is not None and not self.min_throughput > 0:
            raise UsageError(f"--min-throughput {self.min_throughput:g} bounds nothing: give images per second.")


@dataclass(frozen=True)
class Judgement:
    """What became of the bounds, in sentences.

    Attributes:
        failed: bounds that do not hold.
        doubtful: bounds that hold, or do not, within noise.
        unknown: bounds that nothing can be held against.
    """

    failed: tuple[str, ...]
    doubtful: tuple[str, ...]
    unknown: tuple[str, ...]

    def enforce(self) -> None:
        """Raise what there is to raise.

        Raises:
            BackendUnavailable: a figure is not known here.
            GateFailed: a bound does not hold.
        """
        if self.unknown:
            raise BackendUnavailable("\n".join(self.unknown))
        if self.failed:
            raise GateFailed("\n".join(self.failed))


@dataclass(frozen=True)
class _Figure:
    """A known figure and its bound.

    Attributes:
        option: that bounds it.
        bound: in the unit of `found`.
        what: whose figure it is, and of what.
        found: the figure.
        unit: that it is printed in.
        scale: how many of those are one of `found`.
        least: the bound is a lower one.
        remedy: what to do where the bound fails.
    """

    option: str
    bound: float
    what: str
    found: Interval
    unit: str
    scale: float = 1.0
    least: bool = False
    remedy: str = "choose a faster engine, or change the bound"

    @property
    def fails(self) -> bool:
        """The whole interval is beyond the bound; without an interval the figure is."""
        if self.found.low is None:
            return self.found.value < self.bound if self.least else self.found.value > self.bound
        return self.found.wholly_below(self.bound) if self.least else self.found.wholly_above(self.bound)

    @property
    def is_open(self) -> bool:
        """The bound is within noise of the figure."""
        return (
            self.found.low is not None and self.found.high is not None and self.found.low < self.bound < self.found.high
        )

    def said(self, relation: str, remedy: str) -> str:
        """The figure, how it stands to its bound, and what to do."""
        low, high = self.found.low, self.found.high
        spread = f" ({self._shown(low)} to {self._shown(high)} at 95 %)" if low is not None and high is not None else ""
        return (
            f"{self.what} is {self._shown(self.found.value)} {self.unit}{spread}: that is {relation} {self.option} "
            f"{self._shown(self.bound)} {self.unit}; {remedy}."
        )

    def _shown(self, value: float) -> str:
        return f"{self.scale * value:.4g}"


def judged(gates: Gates, latency: Benchmark, accuracy: Mapping[str, Accuracy]) -> Judgement:
    """Hold every engine against the bounds."""
    failed, doubtful, unknown = [], [], []
    for figure in _figures(gates, latency, accuracy):
        if isinstance(figure, str):
            unknown.append(figure)
        elif not math.isfinite(figure.found.value):
            unknown.append(_unknown(figure.what, figure.option, "look for what is wrong with its record"))
        elif figure.fails:
            failed.append(figure.said("under" if figure.least else "over", figure.remedy))
        elif figure.is_open:
            doubtful.append(figure.said("within noise of", "measure longer, or on more images, to be sure"))
    return Judgement(tuple(failed), tuple(doubtful), tuple(unknown))


def check_outputs(latency: Benchmark) -> None:
    """Refuse a benchmark of an engine that computes nothing.

    Raises:
        ModelError: outputs are not finite, constant, or the same for all inputs.
    """
    for size, row in latency.batches.items():
        for name, found in row.items():
            if found.problems:
                problems = "; ".join(found.problems)
                raise ModelError(
                    f"{name} returns broken outputs at batch {size} ({problems}): build or export it again."
                )


def _figures(gates: Gates, latency: Benchmark, accuracy: Mapping[str, Accuracy]) -> Iterator[_Figure | str]:
    """What is bounded; where nobody knows it, a sentence that says so."""
    smallest, largest = min(latency.batches), max(latency.batches)
    names = list(latency.batches[smallest])
    for name in [n for n in names if n != latency.baseline] or names:
        if gates.max_drop is not None:
            yield from _drops(name, gates.max_drop, accuracy.get(name))
        yield from _speeds(name, gates, latency.batches[smallest][name], latency.batches[largest][name])


def _speeds(name: str, gates: Gates, small: Measurement, large: Measurement) -> Iterator[_Figure | str]:
    if gates.max_p99 is not None:
        yield _Figure("--max-p99", gates.max_p99, f"{name}'s p99 at batch {small.batch}", small.p99, "ms")
    if gates.min_throughput is not None:
        what = f"{name}'s throughput at batch {large.batch}"
        yield _Figure("--min-throughput", gates.min_throughput, what, large.throughput, "images/s", least=True)
    if gates.max_energy is not None:
        what = f"{name}'s energy per image at batch {large.batch}"
        if large.energy is None:
            yield _unknown(what, "--max-energy", "run it on a GPU that NVML can read")
        else:
            yield _Figure("--max-energy", gates.max_energy, what, large.energy, "mJ", scale=1000)


def _drops(name: str, bound: float, accuracy: Accuracy | None) -> Iterator[_Figure | str]:
    if accuracy is None or not accuracy.drops:
        yield _unknown(f"{name}'s drop", "--max-drop", "measure it and a reference on --data")
        return
    for metric, drop in accuracy.drops.items():
        what = f"{name}'s drop of {metric} on {drop.images:,} images"
        remedy = "calibrate it on more images, or raise the bound"
        yield _Figure("--max-drop", bound, what, drop.points, "points", remedy=remedy)


def _unknown(what: str, option: str, remedy: str) -> str:
    return f"{what} is not known, so {option} cannot be held: {remedy}."
