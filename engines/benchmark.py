"""A fair comparison of engines: interleaved rounds, rotating inputs, spread over rounds, outputs checked.

The convention: after a warm-up, every round times each session in turn on the same batch (A/B/A/B), so that a clock
that drifts hits all alike. A latency is whatever the session's own clock covers; it is named beside the figures. The
ratio is the median over all samples against the baseline's, with the interval of `engines.bootstrap`. Throughput is
images over wall time. Energy is the GPU's mean power over a turn times the turn's wall time, per image.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from engines.agreement import Agreement, agreements, output_problems
from engines.backend import PLAIN, Feeds, Session
from engines.bootstrap import Interval, bootstrap, ratio_of_medians
from engines.caveats import caveats
from engines.figures import figures
from engines.nvml import Absent, Gpu, Reading, joules_between
from engines.timing import TimingOptions, Timings, merged
from toolchain.errors import UsageError
from toolchain.progress import Progress, silent

LEAST_CALLS = 10
"""Timed calls of each session and batch size, however long one takes; trtexec's default."""


@dataclass(frozen=True)
class Settings:
    """How much is measured, and how.

    Attributes:
        warmup: untimed calls per session and batch size, at least.
        rounds: interleaved rounds.
        iterations: timed calls per session and round; None: as many as fill `duration`, by the warm-up's last calls.
        duration: seconds of timed calls per session and batch size, over all rounds.
        warmup_ms: milliseconds of warm-up per session and batch size, at least.
        timing: how each call is timed.

    Raises:
        UsageError: a number below its bound.
    """

    warmup: int = 10
    rounds: int = 10
    iterations: int | None = 20
    duration: float = 3.0
    warmup_ms: float = 0.0
    timing: TimingOptions = PLAIN

    def __post_init__(self) -> None:
        bounds = {"warmup": 0, "rounds": 1, "iterations": 1, "warmup_ms": 0}
        for name, bound in bounds.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise UsageError(f"Benchmark {name} {value} is too small: give at least {bound}.")
        if not 0 < self.duration < math.inf:
            raise UsageError(f"Benchmark duration {self.duration:g} s measures nothing: give some seconds.")


@dataclass(frozen=True)
class Turn:
    """One session's calls in one round, and the GPU before and after them, where there is one to read from."""

    timings: Timings
    before: Reading | None = None
    after: Reading | None = None


@dataclass(frozen=True)
class Measurement:
    """One session at one batch size.

    Attributes:
        batch: images per call.
        first_call_ms: milliseconds on the host of the very first call at this batch size, before any warm-up: into it
            falls what a runtime compiles or allocates late.
        turns: one per round.
        ratio: of median latencies, to the baseline; below 1 where faster.
        agreement: output -> how far it is from the baseline's of this name.
        problems: what is wrong with the outputs: not finite, constant, or the same for all inputs.
    """

    batch: int
    first_call_ms: float
    turns: tuple[Turn, ...]
    ratio: Interval
    agreement: Mapping[str, Agreement]
    problems: tuple[str, ...]

    @cached_property
    def timings(self) -> Timings:
        """All samples of all rounds."""
        return merged([turn.timings for turn in self.turns])

    @property
    def rounds(self) -> tuple[tuple[float, ...], ...]:
        """Latencies in milliseconds, round after round."""
        return tuple(turn.timings.milliseconds for turn in self.turns)

    @property
    def images_per_second(self) -> float:
        """Images over wall time."""
        return self.throughput.value

    @cached_property
    def throughput(self) -> Interval:
        """Images per second of wall time."""
        images = self.batch * np.array([[turn.timings.n] for turn in self.turns])
        seconds = np.array([[turn.timings.seconds] for turn in self.turns])
        return bootstrap(lambda some, wall: some.sum(-1) / wall.sum(-1), images, seconds)

    @cached_property
    def p99(self) -> Interval:
        """Milliseconds."""
        return bootstrap(lambda samples: np.percentile(samples, 99, axis=-1), np.array(self.rounds))

    @cached_property
    def energy(self) -> Interval | None:
        """Joules per image; None where no GPU computed, or nothing counts its energy."""
        spent = [self._joules_per_image(turn) for turn in self.turns]
        known = [[joules] for joules in spent if joules is not None]
        if not self.timings.on_gpu or len(known) < len(spent):
            return None
        return bootstrap(lambda joules: joules.mean(-1), np.array(known))

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The GPU after each turn; empty where none computed."""
        return tuple(turn.after for turn in self.turns if turn.after) if self.timings.on_gpu else ()

    @property
    def caveats(self) -> tuple[str, ...]:
        """What makes the figures doubtful."""
        return caveats(self.timings, self.readings)

    def as_dict(self, *, samples: bool = False) -> dict[str, Any]:
        """JSON-able; with every sample where asked for."""
        throughputs = [self.batch * turn.timings.n / turn.timings.seconds for turn in self.turns]
        record = {
            "timings": self.timings.as_dict(),
            "first_call_ms": self.first_call_ms,
            "iterations": self.turns[0].timings.n,
            "images_per_second": self.images_per_second,
            "throughput": {**figures(throughputs), "unit": "images/s, by round"},
            "intervals": {"p99": asdict(self.p99), "images_per_second": asdict(self.throughput)},
            "ratio": asdict(self.ratio),
            "agreement": {name: found.as_dict() for name, found in self.agreement.items()},
            "problems": list(self.problems),
            "caveats": list(self.caveats),
            "gpu": self._gpu_figures(),
        }
        return {**record, "rounds": [_turn_record(turn) for turn in self.turns]} if samples else record

    def _joules_per_image(self, turn: Turn) -> float | None:
        joules = joules_between(turn.before, turn.after)
        if joules is None or turn.before is None or turn.after is None:
            return None
        # A turn has untimed calls, too; the power is the same there.
        share = turn.timings.seconds / (turn.after.seconds - turn.before.seconds)
        return joules * share / (self.batch * turn.timings.n)

    def _gpu_figures(self) -> dict[str, Any]:
        """Clocks, temperature, power over the rounds, and energy; only what is known."""
        found: dict[str, Any] = {}
        for name in ("sm_mhz", "memory_mhz", "celsius", "watts"):
            values = [getattr(reading, name) for reading in self.readings if getattr(reading, name) is not None]
            if values:
                found[name] = {"min": min(values), "max": max(values), "mean": sum(values) / len(values)}
        if self.readings:
            found["throttled"] = sorted({reason for reading in self.readings for reason in reading.throttled})
        if self.energy:
            found["joules_per_image"] = asdict(self.energy)
        return found


@dataclass(frozen=True)
class Benchmark:
    """What was measured.

    Attributes:
        baseline: the session that the others are compared with.
        settings: how much was measured, and how.
        batches: batch size -> session name -> measurement.
        gpu: name and driver of the GPU that was read, or why none was.
    """

    baseline: str
    settings: Settings
    batches: Mapping[int, Mapping[str, Measurement]]
    gpu: str = ""

    def as_dict(self, *, samples: bool = False) -> dict[str, Any]:
        """JSON-able, with summaries alone, or with every sample."""
        batches = {
            str(size): {name: found.as_dict(samples=samples) for name, found in row.items()}
            for size, row in self.batches.items()
        }
        return {"baseline": self.baseline, "settings": asdict(self.settings), "gpu": self.gpu, "batches": batches}


UNWATCHED = Absent("no GPU was watched")


def benchmark(
    sessions: Mapping[str, Session],
    batches: Sequence[Sequence[Feeds]],
    settings: Settings | None = None,
    progress: Progress = silent,
    gpu: Gpu | Absent = UNWATCHED,
) -> Benchmark:
    """Compare sessions; the first is the baseline.

    Args:
        sessions: name -> open session; all take the same inputs.
        batches: per batch size, the feeds to rotate through, one per round.
        settings: how much to measure.
        progress: told after each round.
        gpu: read between turns.

    Raises:
        UsageError: no session, no feeds, or feeds of one batch size that differ in it, or one batch size twice; or a
            session that cannot honour a setting.
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
        first = {name: _first_call(session, feeds[0]) for name, session in sessions.items()}
        outputs = {name: [session.run(f) for f in feeds] for name, session in sessions.items()}
        turns = _interleaved(sessions, feeds, settings, gpu, lambda: progress(next(rounds_done), total))
        base = next(iter(sessions))
        measured[size] = {
            name: Measurement(
                batch=size,
                first_call_ms=first[name],
                turns=tuple(mine),
                ratio=_ratio(mine, turns[base]),
                agreement=agreements(outputs[name], outputs[base]),
                problems=output_problems(outputs[name], feeds),
            )
            for name, mine in turns.items()
        }
    described = gpu.reason if isinstance(gpu, Absent) else f"{gpu.name}, driver {gpu.driver}"
    return Benchmark(next(iter(sessions)), settings, measured, described)


def _first_call(session: Session, feed: Feeds) -> float:
    start = time.perf_counter_ns()
    session.run(feed)
    return (time.perf_counter_ns() - start) / 1e6


def _batch_size(feeds: Sequence[Feeds]) -> int:
    sizes = {array.shape[0] for feed in feeds for array in feed.values()}
    if len(sizes) != 1:
        raise UsageError(f"Feeds of one batch size have {sorted(sizes)} items: give them one batch size.")
    return int(sizes.pop())


def _interleaved(
    sessions: Mapping[str, Session],
    feeds: Sequence[Feeds],
    settings: Settings,
    gpu: Gpu | Absent,
    told: Callable[[], None],
) -> dict[str, list[Turn]]:
    calls = {name: _calls_after_warmup(session, feeds[0], settings) for name, session in sessions.items()}
    turns: dict[str, list[Turn]] = {name: [] for name in sessions}
    before = gpu.read()
    for turn in range(settings.rounds):
        for name, session in sessions.items():
            timings = session.time(feeds[turn % len(feeds)], calls[name], settings.timing)
            after = gpu.read()
            turns[name].append(Turn(timings, before, after))
            before = after
        told()
    return turns


def _calls_after_warmup(session: Session, feed: Feeds, settings: Settings) -> int:
    """Warm up, and say how many calls a round has."""
    done, spent, last = 0, 0.0, None
    while done < settings.warmup or spent < settings.warmup_ms:
        # By time: one call first, for it may compile; then twice as many, and twice as many again.
        calls = max(done, 1) if spent < settings.warmup_ms else settings.warmup - done
        last = session.time(feed, calls, settings.timing)
        done, spent = done + calls, spent + 1000 * last.seconds
    if settings.iterations is not None:
        return settings.iterations
    pilot = last or session.time(feed, 1, settings.timing)
    filling = settings.duration * pilot.n / pilot.seconds if pilot.seconds else LEAST_CALLS
    return math.ceil(max(filling, LEAST_CALLS) / settings.rounds)


def _ratio(mine: Sequence[Turn], base: Sequence[Turn]) -> Interval:
    return ratio_of_medians([t.timings.milliseconds for t in mine], [t.timings.milliseconds for t in base])


def _turn_record(turn: Turn) -> dict[str, Any]:
    gpu = {"before": turn.before.as_dict(), "after": turn.after.as_dict()} if turn.before and turn.after else {}
    return {**turn.timings.samples(), **gpu}
