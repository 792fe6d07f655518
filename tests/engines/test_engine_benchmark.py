"""Figures against hand-derived ones; no assertion depends on how fast this machine is."""

import json
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np
import pytest

from engines.backend import Feeds
from engines.benchmark import Settings, benchmark, output_problems
from engines.memory import MemorySession
from engines.timing import Timings
from toolchain.errors import UsageError

FEED = {"image": np.arange(6, dtype=np.float32).reshape(2, 3)}


def scripted(*milliseconds: float) -> Callable[[], float]:
    """A clock in seconds which makes the calls take these times, over and over."""

    def ticks() -> Iterator[float]:
        now = 0.0
        for ms in cycle(milliseconds):
            yield now
            now += ms / 1000
            yield now

    clock = ticks()
    return lambda: next(clock)


def test_figures_of_a_timing() -> None:
    # 1..5: median 3; the 90th percentile lies at position 0.9 * 4 = 3.6, so 4 + 0.6; deviation sqrt(2), mean 3.
    timings = Timings((5.0, 1.0, 4.0, 2.0, 3.0), "script")
    assert (timings.n, timings.median, timings.mean) == (5, 3.0, 3.0)
    assert timings.p90 == pytest.approx(4.6)
    assert timings.p95 == pytest.approx(4.8)
    assert timings.p99 == pytest.approx(4.96)
    assert timings.cv == pytest.approx(2**0.5 / 3)
    assert timings.as_dict()["clock"] == "script"
    with pytest.raises(UsageError, match="0 iterations"):
        Timings((), "script")


def test_ratio_and_its_range_over_rounds() -> None:
    # Rounds of 2 calls: the baseline takes 10 ms; the other 5, 5 | 8, 8 | 6, 6, so ratios 0.5, 0.8, 0.6, median 6 / 10.
    sessions = {"fp32": MemorySession(clock=scripted(10)), "int8": MemorySession(clock=scripted(5, 5, 8, 8, 6, 6))}
    result = benchmark(sessions, [[FEED]], Settings(warmup=0, rounds=3, iterations=2))
    int8 = result.batches[2]["int8"]
    assert result.baseline == "fp32"
    assert int8.timings.n == 6
    assert int8.ratio.value == pytest.approx(0.6)
    assert (int8.ratio.low, int8.ratio.high) == (pytest.approx(0.5), pytest.approx(0.8))
    assert result.batches[2]["fp32"].ratio.value == 1.0
    # 2 images per call; the mean is 38 / 6 ms.
    assert int8.images_per_second == pytest.approx(2000 * 6 / 38)
    assert result.batches[2]["fp32"].images_per_second == pytest.approx(200)


def test_sessions_take_turns_and_inputs_rotate() -> None:
    seen: list[tuple[str, float]] = []

    def recorder(name: str) -> Callable[[Feeds], dict[str, Any]]:
        def run(feeds: Feeds) -> dict[str, Any]:
            seen.append((name, float(feeds["image"][0, 0])))
            return dict(feeds)

        return run

    feeds = [{"image": np.array([[value, 1.0]])} for value in (0.0, 7.0)]
    told: list[tuple[int, int]] = []
    benchmark(
        {name: MemorySession(recorder(name)) for name in "ab"},
        [feeds],
        Settings(warmup=1, rounds=3, iterations=1),
        lambda done, total, note="": told.append((done, total)),
    )
    checks = [("a", 0.0), ("a", 7.0), ("b", 0.0), ("b", 7.0)]
    warmup = [("a", 0.0), ("b", 0.0)]
    rounds = [("a", 0.0), ("b", 0.0), ("a", 7.0), ("b", 7.0), ("a", 0.0), ("b", 0.0)]
    assert seen == checks + warmup + rounds
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_outputs_are_compared_with_the_baseline_and_checked() -> None:
    broken = MemorySession(lambda feeds: {"image": feeds["image"] * np.nan, "extra": np.zeros((2, 2))})
    off = MemorySession(lambda feeds: {"image": feeds["image"] + [0, 0, 0.25]})
    result = benchmark({"right": MemorySession(), "off": off, "broken": broken}, [[FEED]], Settings(0, 1, 1)).batches[2]
    assert result["right"].problems == ()
    assert result["off"].difference == {"image": 0.25}
    assert result["broken"].difference == {}
    assert result["broken"].problems == ("image is not finite in 6 of 6 values", "extra is 0 everywhere")


def test_a_single_value_is_not_called_constant() -> None:
    assert output_problems([{"score": np.zeros(1)}]) == ()
    assert output_problems([{"score": np.zeros(1)}, {"score": np.zeros(1)}]) == ("score is 0 everywhere",)


def test_batch_sizes_are_apart_and_the_result_is_json() -> None:
    one = {"image": FEED["image"][:1]}
    result = benchmark({"a": MemorySession(clock=scripted(1))}, [[one], [FEED]], Settings(0, 1, 2))
    assert list(result.batches) == [1, 2]
    record = json.loads(json.dumps(result.as_dict()))
    assert record["batches"]["2"]["a"]["timings"]["median"] == pytest.approx(1.0)
    assert record["settings"] == {"warmup": 0, "rounds": 1, "iterations": 2}


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "of nothing"),
        ([[]], "of nothing"),
        ([[FEED], [FEED]], "repeat"),
        ([[FEED, {"image": FEED["image"][:1]}]], "one batch size"),
    ],
)
def test_what_cannot_be_measured_is_refused(batches: list[list[Feeds]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        benchmark({"a": MemorySession()}, batches)


def test_settings_have_bounds() -> None:
    with pytest.raises(UsageError, match="rounds 0"):
        Settings(rounds=0)


def test_the_script_of_these_tests() -> None:
    clock = scripted(1, 2)
    assert list(islice(iter(clock, None), 4)) == [0.0, 0.001, 0.001, pytest.approx(0.003)]
