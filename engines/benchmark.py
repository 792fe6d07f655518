"""A fair comparison of engines: interleaved rounds, rotating inputs, spread over rounds, outputs checked.

The convention: after a warm-up, every round times each session in turn on the same batch (A/B/A/B), so that a clock
that drifts hits all alike. A latency is whatever the session's own clock covers; it is named beside the figures. The
ratio is the median over all samples against the baseline's; its range is over the ratios of the single rounds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.backend import Feeds, Session
from engines.timing import Timings
from toolchain.errors import UsageError
from toolchain.progress import Progress, silent

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        warmup: untimed calls per session and batch size.
        rounds: interleaved rounds.
        iterations: timed calls per session and round.

    Raises:
        UsageError: a number below its bound.
    """

    warmup: int = 10
    rounds: int = 10
    iterations: int = 20

    def __post_init__(self) -> None:
        for name, bound in (("warmup", 0), ("rounds", 1), ("iterations", 1)):
            if (value := getattr(self, name)) < bound:
                raise UsageError(f"Benchmark {name} {value} is too small: give at least {bound}.")


@dataclass(frozen=True)
class Ratio:
    """Latency relative to the baseline's, below 1 where faster: of the overall medians, and its range over rounds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """One session at one batch size.

    Attributes:
        timings: all samples of all rounds.
        ratio: to the baseline.
        images_per_second: batch size over mean latency.
        difference: output -> largest absolute difference to the baseline's output of this name over all feeds; left
            out where the baseline lacks the name or shape, or a value is not finite.
        problems: what is wrong with the outputs: not finite, or constant.
    """

    timings: Timings
    ratio: Ratio
    images_per_second: float
    difference: Mapping[str, float]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """Batch size -> session name -> measurement, and what they are relative to."""

    baseline: str
    settings: Settings
    batches: Mapping[int, Mapping[str, Measurement]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, with summaries instead of single samples."""
        batches = {
            str(size): {name: {**asdict(m), "timings": m.timings.as_dict()} for name, m in row.items()}
            for size, row in self.batches.items()
        }
        return {"baseline": self.baseline, "settings": asdict(self.settings), "batches": batches}


def benchmark(
    sessions: Mapping[str, Session],
    batches: Sequence[Sequence[Feeds]],
    settings: Settings | None = None,
    progress: Progress = silent,
) -> Benchmark:
    """Compare sessions; the first is the baseline.

    Args:
        sessions: name -> open session; all take the same inputs.
        batches: per batch size, the feeds to rotate through, one per round.
        settings: how much to measure.
        progress: told after each round.

    Raises:
        UsageError: no session, no feeds, or feeds of one batch size that differ in it, or one batch size twice.
        BackendError: a session refused to run.
    """
    settings = settings or Settings()
    if not sessions or not batches or not all(batches):
        raise UsageError("A benchmark of nothing says nothing: give at least one engine and one batch.")
    sizes = [_batch_size(feeds) for feeds in batches]
    if len(set(sizes)) < len(sizes):
        raise UsageError(f"Batch sizes {sizes} repeat: name each once.")
    measured = {}
    rounds_done, total = count(1), len(sizes) * settings.rounds
    for size, feeds in zip(sizes, batches, strict=True):
        outputs = {name: [session.run(f) for f in feeds] for name, session in sessions.items()}
        rounds = _interleaved(sessions, feeds, settings, lambda: progress(next(rounds_done), total))
        measured[size] = _measurements(size, outputs, rounds)
    return Benchmark(next(iter(sessions)), settings, measured)


def output_problems(outputs: Sequence[Outputs]) -> tuple[str, ...]:
    """What is wrong with outputs of several batches: values that are not finite, or one value everywhere."""
    problems = []
    for name in outputs[0]:
        values = np.concatenate([np.ravel(o[name]) for o in outputs])
        if not np.isfinite(values).all():
            problems.append(f"{name} is not finite in {int((~np.isfinite(values)).sum())} of {values.size} values")
        elif values.size > 1 and (values == values[0]).all():
            problems.append(f"{name} is {values[0]:g} everywhere")
    return tuple(problems)


def _batch_size(feeds: Sequence[Feeds]) -> int:
    sizes = {array.shape[0] for feed in feeds for array in feed.values()}
    if len(sizes) != 1:
        raise UsageError(f"Feeds of one batch size have {sorted(sizes)} items: give them one batch size.")
    return int(sizes.pop())


def _interleaved(
    sessions: Mapping[str, Session], feeds: Sequence[Feeds], settings: Settings, told: Callable[[], None]
) -> dict[str, list[Timings]]:
    for session in sessions.values():
        if settings.warmup:
            session.time(feeds[0], settings.warmup)
    rounds: dict[str, list[Timings]] = {name: [] for name in sessions}
    for turn in range(settings.rounds):
        for name, session in sessions.items():
            rounds[name].append(session.time(feeds[turn % len(feeds)], settings.iterations))
        told()
    return rounds


def _measurements(
    size: int, outputs: Mapping[str, Sequence[Outputs]], rounds: Mapping[str, Sequence[Timings]]
) -> dict[str, Measurement]:
    merged = {name: _merged(turns) for name, turns in rounds.items()}
    baseline = next(iter(rounds))
    return {
        name: Measurement(
            timings=merged[name],
            ratio=_ratio(merged[name], merged[baseline], rounds[name], rounds[baseline]),
            images_per_second=1000 * size / merged[name].mean,
            difference=_difference(outputs[name], outputs[baseline]),
            problems=output_problems(outputs[name]),
        )
        for name in rounds
    }


def _merged(turns: Sequence[Timings]) -> Timings:
    return Timings(tuple(ms for turn in turns for ms in turn.milliseconds), turns[0].clock)


def _ratio(mine: Timings, base: Timings, my_turns: Sequence[Timings], base_turns: Sequence[Timings]) -> Ratio:
    single = [m.median / b.median for m, b in zip(my_turns, base_turns, strict=True)]
    return Ratio(mine.median / base.median, min(single), max(single))


def _difference(mine: Sequence[Outputs], base: Sequence[Outputs]) -> dict[str, float]:
    names = [n for n in mine[0] if n in base[0] and mine[0][n].shape == base[0][n].shape]
    largest = {n: np.max([np.max(np.abs(m[n] - b[n])) for m, b in zip(mine, base, strict=True)]) for n in names}
    return {n: float(value) for n, value in largest.items() if np.isfinite(value)}
