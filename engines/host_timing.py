"""Timing by the host's clock: how every session on a CPU times its calls, with a warm cache or a cold one."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from engines.timing import TimingOptions, Timings, refuse_gpu_options

CPUS = Path("/sys/devices/system/cpu")
UNKNOWN_CACHE = 256 * 2**20
"""Bytes that are overwritten where Linux does not say how large the last-level cache is."""
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def timed_on_host(
    call: Callable[[], object],
    iterations: int,
    options: TimingOptions,
    session: str,
    clock: Callable[[], float] = time.perf_counter,
    name: str = "perf_counter",
) -> Timings:
    """Time a call from host arrays to host arrays.

    Args:
        call: what is timed.
        iterations: how often.
        options: cold cache alone is honoured; whatever asks for a GPU is refused.
        session: what the message calls it, as `engines.timing.refuse_gpu_options` does.
        clock: seconds.
        name: of the clock.

    Raises:
        UsageError: no iteration, or an option that asks for a GPU.
    """
    refuse_gpu_options(options, session)
    chill = ColdCache(last_level_caches()) if options.cold_cache else None
    samples = []
    for _ in range(iterations):
        if chill is not None:
            chill()
        start = clock()
        call()
        samples.append(1000 * (clock() - start))
    settings = {"cuda_graph": False, "spin_wait": False, "transfers": True, "streams": 1}
    return Timings(tuple(samples), name, settings={**settings, "cold_cache": options.cold_cache})


class ColdCache:
    """Overwrites every last-level cache when it is called.

    Args:
        caches: as `last_level_caches` gives them; none: `UNKNOWN_CACHE` bytes are overwritten, wherever that happens.
    """

    def __init__(self, caches: Mapping[int, int]) -> None:
        self.cpus = tuple(caches)
        # Twice the size: a cache need not evict the oldest line first.
        self.buffer = np.zeros(2 * max(caches.values(), default=UNKNOWN_CACHE // 2), np.uint8)

    def __call__(self) -> None:
        """Overwrite; on a machine with several such caches from a CPU of each, for a CPU fills its own alone."""
        allowed = os.sched_getaffinity(0)
        try:
            for cpu in self.cpus:
                os.sched_setaffinity(0, {cpu})
                self.buffer += 1
        finally:
            os.sched_setaffinity(0, allowed)
        if not self.cpus:
            self.buffer += 1


def last_level_caches(cpus: Path = CPUS) -> dict[int, int]:
    """One CPU of each last-level cache that this process may use -> bytes; empty where Linux does not say."""
    found: dict[str, tuple[int, int]] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        levels = {}
        for index in (cpus / f"cpu{cpu}" / "cache").glob("index*"):
            level, shared, size = (_content(index / field) for field in ("level", "shared_cpu_list", "size"))
            if level.isdigit() and size[:-1].isdigit() and size[-1:] in UNITS:
                levels[int(level)] = shared, int(size[:-1]) * UNITS[size[-1]]
        if levels:
            shared, size_ = levels[max(levels)]
            found.setdefault(shared, (cpu, size_))
    return dict(found.values())


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
