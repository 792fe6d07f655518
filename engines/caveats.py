"""What makes a figure doubtful: trtexec's warnings by its bounds, and those of NVML and of a busy CPU."""

from collections.abc import Sequence

import numpy as np

from engines.figures import coefficient_of_variation
from engines.nvml import Reading
from engines.timing import D2H, ENQUEUE, GPU_COMPUTE, H2D, Timings

ENQUEUE_BOUND = 0.8
"""Of the GPU compute time, medians: from here on trtexec warns that the host sets the pace."""
UNSTABLE = 0.025
"""Coefficient of variation from which on a time is called unstable."""
CLOCK_CHANGED = 0.02
"""Of the highest clock: a lower one on some turns explains as much of a difference."""


def caveats(timings: Timings, readings: Sequence[Reading]) -> tuple[str, ...]:
    """Sentences about one session at one batch size; `readings` are those after its turns."""
    found = [*_bound_by(timings), *_unstable(timings)]
    reasons = sorted({reason for reading in readings for reason in reading.throttled})
    if reasons:
        found.append(f"the GPU was throttled ({', '.join(reasons)}): cool it, or raise its power limit")
    clocks = [reading.sm_mhz for reading in readings if reading.sm_mhz is not None]
    if clocks and max(clocks) - min(clocks) > CLOCK_CHANGED * max(clocks):
        found.append(f"the SM clock changed ({min(clocks):.0f} to {max(clocks):.0f} MHz): lock it with nvidia-smi -lgc")
    return tuple(found)


def busy_cpu(load: float, cores: int) -> tuple[str, ...]:
    """A sentence where the load average before the benchmark is above the cores that this process may use."""
    if load <= cores:
        return ()
    return (f"the load average was {load:.1f} on {cores} cores before the first call: end what else runs here",)


def _bound_by(timings: Timings) -> list[str]:
    medians = {phase: float(np.median(samples)) for phase, samples in timings.phases.items()}
    compute = medians.get(GPU_COMPUTE)
    if compute is None:
        return []
    found = []
    if (enqueue := medians.get(ENQUEUE)) is not None and enqueue > ENQUEUE_BOUND * compute:
        found.append(
            f"enqueue-bound: its median {enqueue:.3f} ms is over {ENQUEUE_BOUND:g} of the GPU compute time's "
            f"{compute:.3f} ms; use --cuda-graph"
        )
    for phase, name, what in ((H2D, "H2D", "inputs"), (D2H, "D2H", "outputs")):
        if (copying := medians.get(phase)) is not None and copying >= compute:
            found.append(
                f"{name}-bound: copying the {what} takes {copying:.3f} ms and computing {compute:.3f} ms; "
                "keep them on the GPU with --no-transfers"
            )
    return found


def _unstable(timings: Timings) -> list[str]:
    name, samples = "latency", timings.milliseconds
    if GPU_COMPUTE in timings.phases:
        name, samples = "GPU compute time", timings.phases[GPU_COMPUTE]
    if (cv := coefficient_of_variation(samples)) <= UNSTABLE:
        return []
    remedy = "lock the clocks, or use --spin-wait" if timings.on_gpu else "end what else runs here, or measure longer"
    return [f"unstable: the {name}'s coefficient of variation is {100 * cv:.1f} %, over {100 * UNSTABLE:g} %; {remedy}"]
