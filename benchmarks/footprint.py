"""What one computation adds to a process: seconds, and bytes at its peak. Needs nothing but Linux and Python."""

import time
from collections.abc import Callable
from pathlib import Path


def footprint(action: Callable[[], object]) -> dict[str, float]:
    """Run `action` once.

    Returns:
        seconds: wall time.
        peak_bytes: largest resident memory of the process meanwhile.
        added_bytes: that, less what the process held before (its libraries, weights and images).
    """
    # Linux forgets the peak so far: imports and initialization may have needed more than the action will.
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _status("VmRSS"), time.perf_counter()
    action()
    seconds, peak = time.perf_counter() - start, _status("VmHWM")
    return {"seconds": seconds, "peak_bytes": peak, "added_bytes": peak - before}


def _status(field: str) -> int:
    """A figure of this process in bytes, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
