"""What a timing is: how calls are to be timed, and the samples that come of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engines.figures import coefficient_of_variation, figures
from toolchain.errors import UsageError

H2D, GPU_COMPUTE, D2H, ENQUEUE = "h2d", "gpu_compute", "d2h", "enqueue"
"""Phases of a call on a GPU, as trtexec defines them: copy in, kernels, copy out (CUDA events); time on the host until
everything is queued."""
TRTEXEC_NAMES = {
    H2D: "H2D Latency",
    GPU_COMPUTE: "GPU Compute Time",
    D2H: "D2H Latency",
    ENQUEUE: "Enqueue Time",
}
"""Phase -> what trtexec calls it."""


@dataclass(frozen=True)
class TimingOptions:
    """How calls are timed. A session refuses what it cannot honour.

    Attributes:
        cuda_graph: replay the call as one captured graph; None: where the session can.
        spin_wait: wait for the GPU in a busy loop: less jitter, a whole core.
        transfers: copy inputs and outputs in every call; without, they stay on the GPU.
        streams: calls in flight at a time.
        cold_cache: overwrite the GPU's L2 cache (on a CPU: its last-level cache) before every call, outside the timing.

    Raises:
        UsageError: no stream.
    """

    cuda_graph: bool | None = None
    spin_wait: bool = False
    transfers: bool = True
    streams: int = 1
    cold_cache: bool = False

    def __post_init__(self) -> None:
        if self.streams < 1:
            raise UsageError(f"{self.streams} streams run nothing: give at least 1.")


@dataclass(frozen=True)
class Timings:
    """Latencies of single calls.

    Attributes:
        milliseconds: one sample per call, at least one: everything from host arrays to host arrays, as far as
            `settings` keep transfers in.
        clock: what was read and what it covers, e.g. `perf_counter`.
        phases: phase -> one sample per call; only what the session can tell apart.
        wall_seconds: from the first call's start to the last one's end; None: the sum of the samples.
        settings: what really held of `TimingOptions`, by name, and what else decides the figures: `threads`,
            `provider`, `device`.

    Raises:
        UsageError: no sample, or a phase with another number of them.
    """

    milliseconds: tuple[float, ...]
    clock: str
    phases: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    wall_seconds: float | None = None
    settings: Mapping[str, bool | int | float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.milliseconds:
            raise UsageError("A timing of 0 iterations says nothing: ask for at least 1.")
        for phase, samples in self.phases.items():
            if len(samples) != self.n:
                raise UsageError(f"Phase {phase} has {len(samples)} samples and the calls {self.n}: time each call.")

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.milliseconds)

    @property
    def seconds(self) -> float:
        """Wall time of all calls."""
        return self.wall_seconds if self.wall_seconds is not None else sum(self.milliseconds) / 1000

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU computed: it was timed apart, or the session says so."""
        computed_by = str(self.settings.get("device", self.settings.get("provider", "cpu")))
        return GPU_COMPUTE in self.phases or not computed_by.lower().startswith("cpu")

    @property
    def median(self) -> float:
        """Milliseconds."""
        return self.percentile(50)

    @property
    def p90(self) -> float:
        """Milliseconds."""
        return self.percentile(90)

    @property
    def p95(self) -> float:
        """Milliseconds."""
        return self.percentile(95)

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return self.percentile(99)

    @property
    def mean(self) -> float:
        """Milliseconds."""
        return float(np.mean(self.milliseconds))

    @property
    def cv(self) -> float:
        """Coefficient of variation: population standard deviation over mean."""
        return coefficient_of_variation(self.milliseconds)

    def percentile(self, q: float) -> float:
        """The `q`-th percentile (0 to 100) in milliseconds, interpolated linearly between neighbouring samples."""
        return float(np.percentile(self.milliseconds, q))

    def as_dict(self) -> dict[str, Any]:
        """The summary for `--json`: figures of the calls and of each phase; single samples are left out."""
        return {
            **figures(self.milliseconds),
            "unit": "ms",
            "clock": self.clock,
            "phases": {phase: figures(samples) for phase, samples in self.phases.items()},
            "wall_seconds": self.seconds,
            "settings": dict(self.settings),
        }

    def samples(self) -> dict[str, Any]:
        """Every sample, JSON-able."""
        phases = {phase: list(samples) for phase, samples in self.phases.items()}
        return {"milliseconds": list(self.milliseconds), "phases": phases, "wall_seconds": self.seconds}


def merged(rounds: Sequence[Timings]) -> Timings:
    """All calls of several rounds of one session as one timing; only phases that every round has."""
    first = rounds[0]
    phases = [phase for phase in first.phases if all(phase in r.phases for r in rounds)]
    return Timings(
        tuple(ms for r in rounds for ms in r.milliseconds),
        first.clock,
        {phase: tuple(ms for r in rounds for ms in r.phases[phase]) for phase in phases},
        sum(r.seconds for r in rounds),
        first.settings,
    )


def refuse_gpu_options(options: TimingOptions, session: str) -> None:
    """Refuse what asks for a GPU, on behalf of a session that runs on none; `session` names it in the message.

    Raises:
        UsageError: a CUDA graph, spin wait, calls in flight, or arrays that stay on the GPU.
    """
    asked = {
        "a CUDA graph": bool(options.cuda_graph),
        "spin wait": options.spin_wait,
        "no transfers": not options.transfers,
        f"{options.streams} streams": options.streams > 1,
    }
    if wanted := [name for name, given in asked.items() if given]:
        raise UsageError(f"{session} has no GPU to give it {wanted[0]}: leave that option out.")
