"""Timing on a CPU: which caches are overwritten, and when."""

import os
from pathlib import Path

import numpy as np
import pytest

from engines.host_timing import UNKNOWN_CACHE, ColdCache, last_level_caches, timed_on_host
from engines.timing import TimingOptions

MINE = sorted(os.sched_getaffinity(0))


def cpu(root: Path, number: int, *caches: tuple[int, str, str]) -> None:
    """What Linux says of the caches of one CPU: level, who shares it, size."""
    for index, (level, shared, size) in enumerate(caches):
        folder = root / f"cpu{number}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, content in (("level", str(level)), ("shared_cpu_list", shared), ("size", size)):
            (folder / name).write_text(f"{content}\n")


def test_the_last_level_counts_once_for_all_that_share_it(tmp_path: Path) -> None:
    for number in MINE:
        cpu(tmp_path, number, (1, str(number), "32K"), (3, "all of them", "16M"), (2, str(number), "1024K"))
    assert last_level_caches(tmp_path) == {MINE[0]: 16 * 2**20}


def test_caches_that_are_not_shared_are_all_listed(tmp_path: Path) -> None:
    for number in MINE:
        cpu(tmp_path, number, (2, str(number), "512K"))
    assert last_level_caches(tmp_path) == dict.fromkeys(MINE, 512 * 2**10)


def test_where_linux_does_not_say_there_is_a_size_that_will_do(tmp_path: Path) -> None:
    assert last_level_caches(tmp_path) == {}
    cpu(tmp_path, MINE[0], (3, "0", "unknown"))
    assert last_level_caches(tmp_path) == {}
    assert ColdCache({}).buffer.nbytes == UNKNOWN_CACHE


def test_overwriting_touches_every_byte_and_leaves_the_process_where_it_may_run() -> None:
    chill = ColdCache(dict.fromkeys(MINE, 2**10))
    chill()
    assert chill.buffer.nbytes == 2**11
    np.testing.assert_array_equal(chill.buffer, len(MINE))
    assert sorted(os.sched_getaffinity(0)) == MINE


def test_the_cache_is_overwritten_before_each_call_and_outside_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(ColdCache, "__call__", lambda self: happened.append("cold"))

    def clock() -> float:
        happened.append("clock")
        return len(happened)

    timings = timed_on_host(lambda: happened.append("call"), 2, TimingOptions(cold_cache=True), "this", clock)
    assert happened == ["cold", "clock", "call", "clock"] * 2
    # From the clock's 2 to its 4 items, then from 6 to 8.
    assert timings.milliseconds == (2000.0, 2000.0)
    assert timings.settings["cold_cache"] is True
