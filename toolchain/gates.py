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
    """A figure to be held against a bound: whose it is, in words, with its unit and how many of it make the bound's."""

    option: str
    bound: float
    what: str
    found: Interval | None
    unit: str
    scale: float = 1.0
    least: bool = False
    remedy: str = "choose a faster engine, or change the bound"


def judged(gates: Gates, latency: Benchmark, accuracy: Mapping[str, Accuracy]) -> Judgement:
    """Hold every engine against the bounds."""
    failed, doubtful, unknown = [], [], []
    for figure in _figures(gates, latency, accuracy):
        value = figure.found.value if figure.found else math.nan
        if figure.found is None or not math.isfinite(value):
            unknown.append(f"{figure.what} is not known, so {figure.option} cannot be held: {figure.remedy}.")
            continue
        low, high = figure.found.low, figure.found.high
        edge = low if low is not None and high is not None and not figure.least else high
        edge = value if edge is None else edge
        told = f"{figure.what} is {_number(figure, value)} {figure.unit}{_range(figure)}"
        bound = f"{figure.option} {_number(figure, figure.bound)} {figure.unit}"
        if edge < figure.bound if figure.least else edge > figure.bound:
            way = "under" if figure.least else "over"
            failed.append(f"{told}: that is {way} {bound}; {figure.remedy}.")
        elif low is not None and high is not None and low < figure.bound < high:
            doubtful.append(f"{told}: that is within noise of {bound}; measure longer, or on more images, to be sure.")
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


def _figures(gates: Gates, latency: Benchmark, accuracy: Mapping[str, Accuracy]) -> Iterator[_Figure]:
    smallest, largest = min(latency.batches), max(latency.batches)
    names = list(latency.batches[smallest])
    for name in [n for n in names if n != latency.baseline] or names:
        if gates.max_drop is not None:
            yield from _drops(name, gates.max_drop, accuracy.get(name))
        yield from _speeds(name, gates, latency.batches[smallest][name], latency.batches[largest][name])


def _speeds(name: str, gates: Gates, small: Measurement, large: Measurement) -> Iterator[_Figure]:
    if gates.max_p99 is not None:
        yield _Figure("--max-p99", gates.max_p99, f"{name}'s p99 at batch {small.batch}", small.p99, "ms")
    if gates.min_throughput is not None:
        what = f"{name}'s throughput at batch {large.batch}"
        yield _Figure("--min-throughput", gates.min_throughput, what, large.throughput, "images/s", least=True)
    if gates.max_energy is not None:
        what = f"{name}'s energy per image at batch {large.batch}"
        remedy = "choose another engine, or change the bound" if large.energy else "run it on a GPU that NVML can read"
        yield _Figure("--max-energy", gates.max_energy, what, large.energy, "mJ", scale=1000, remedy=remedy)


def _drops(name: str, bound: float, accuracy: Accuracy | None) -> Iterator[_Figure]:
    drops = accuracy.drops if accuracy else {}
    remedy = "calibrate it on more images, or raise the bound"
    for metric, drop in drops.items():
        what = f"{name}'s drop of {metric} on {drop.images:,} images"
        yield _Figure("--max-drop", bound, what, drop.points, "points", remedy=remedy)
    if not drops:
        yield _Figure("--max-drop", bound, f"{name}'s drop", None, "points", remedy="measure both files on --data")


def _range(figure: _Figure) -> str:
    found = figure.found
    if found is None or found.low is None or found.high is None:
        return ""
    return f" ({_number(figure, found.low)} to {_number(figure, found.high)} at 95 %)"


def _number(figure: _Figure, value: float) -> str:
    return f"{figure.scale * value:.4g}"
