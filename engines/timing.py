"""What a timing is: how calls are to be timed, and the samples that come of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolchain.errors import UsageError

H2D, GPU_COMPUTE, D2H, ENQUEUE = "h2d", "gpu_compute", "d2h", "enqueue"
"""Phases of a call on a GPU, as trtexec defines them: copy in, kernels, copy out (CUDA events); time on the host until
everything is queued."""


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
        settings: what really held of `TimingOptions`, by name.

    Raises:
        UsageError: no sample, or a phase with another number of them.
    """

    milliseconds: tuple[float, ...]
    clock: str
    phases: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    wall_seconds: float | None = None
    settings: Mapping[str, bool | int] = field(default_factory=dict)

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
        return float(np.std(self.milliseconds)) / self.mean if self.mean else 0.0

    def percentile(self, q: float) -> float:
        """The `q`-th percentile (0 to 100) in milliseconds, interpolated linearly between neighbouring samples."""
        return float(np.percentile(self.milliseconds, q))

    def as_dict(self) -> dict[str, Any]:
        """The summary for `--json`; single samples are left out."""
        figures = {"median": self.median, "p90": self.p90, "p95": self.p95, "p99": self.p99}
        return {**figures, "mean": self.mean, "cv": self.cv, "n": self.n, "unit": "ms", "clock": self.clock}


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
