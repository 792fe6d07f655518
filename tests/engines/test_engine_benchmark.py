"""Figures against hand-derived ones; no assertion depends on how fast this machine is."""

import json
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np
import pytest

from engines.agreement import output_problems
from engines.backend import PLAIN, Feeds
from engines.benchmark import Settings, benchmark
from engines.memory import MemorySession
from engines.nvml import Gpu, Reading
from engines.timing import ENQUEUE, GPU_COMPUTE, TimingOptions, Timings
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
    record = timings.as_dict()
    assert (record["clock"], record["min"], record["max"], record["n"]) == ("script", 1.0, 5.0, 5)
    assert record["wall_seconds"] == pytest.approx(0.015)
    with pytest.raises(UsageError, match="0 iterations"):
        Timings((), "script")


def test_ratio_and_its_interval() -> None:
    # Rounds of 2 calls: the baseline takes 10 ms; the other 5, 5 | 8, 8 | 6, 6, so ratios 0.5, 0.8, 0.6, median 6 / 10.
    sessions = {"fp32": MemorySession(clock=scripted(10)), "int8": MemorySession(clock=scripted(5, 5, 8, 8, 6, 6))}
    result = benchmark(sessions, [[FEED]], Settings(warmup=0, rounds=3, iterations=2))
    int8 = result.batches[2]["int8"]
    assert result.baseline == "fp32"
    assert int8.timings.n == 6
    assert int8.ratio.value == pytest.approx(0.6)
    # The same round three times, which gives the lowest and the highest ratio, comes up once in 27 draws each.
    assert (int8.ratio.low, int8.ratio.high) == (pytest.approx(0.5), pytest.approx(0.8))
    assert result.batches[2]["fp32"].ratio.value == 1.0
    # 2 images per call; 38 ms for 6 of them.
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
    first = [("a", 0.0), ("b", 0.0)]
    assert seen == first + checks + warmup + rounds
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_first_call_is_told_apart_and_every_batch_size_has_its_own() -> None:
    calls: list[int] = []

    def compiling_at_first(feeds: Feeds) -> dict[str, Any]:
        calls.append(len(feeds["image"]))
        if calls.count(calls[-1]) == 1:
            time.sleep(0.05)
        return dict(feeds)

    one = {"image": FEED["image"][:1]}
    session = MemorySession(compiling_at_first, clock=scripted(1))
    result = benchmark({"a": session}, [[one], [FEED]], Settings(warmup=0, rounds=1, iterations=2))
    for row in result.batches.values():
        assert row["a"].as_dict()["first_call_ms"] >= 50
        assert max(row["a"].timings.milliseconds) == pytest.approx(1)


def test_outputs_are_compared_with_the_baseline_and_checked() -> None:
    broken = MemorySession(lambda feeds: {"image": feeds["image"] * np.nan, "extra": np.zeros((2, 2))})
    off = MemorySession(lambda feeds: {"image": feeds["image"] + [0, 0, 0.25]})
    result = benchmark({"right": MemorySession(), "off": off, "broken": broken}, [[FEED]], Settings(0, 1, 1)).batches[2]
    assert result["right"].problems == ()
    assert result["off"].agreement["image"].max_abs == 0.25
    # Values 0 to 5, two of them off by a quarter: 55 of signal, 1 / 8 of noise.
    assert result["off"].agreement["image"].snr_db == pytest.approx(10 * np.log10(55 * 8))
    assert result["broken"].agreement == {}
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
    assert (record["settings"]["rounds"], record["settings"]["iterations"]) == (1, 2)
    assert record["settings"]["timing"]["streams"] == 1
    # A single round has no interval, and JSON no infinity.
    assert record["batches"]["1"]["a"]["ratio"] == {"value": 1.0, "low": None, "high": None}


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


def test_calls_fill_the_duration_and_are_ten_at_least() -> None:
    seen: list[int] = []

    class Counted(MemorySession):
        def time(self, feeds: Feeds, iterations: int, options: TimingOptions = PLAIN) -> Timings:
            seen.append(iterations)
            return Timings((2.0,) * iterations, "script")

    def rounds(**settings: Any) -> list[int]:
        seen.clear()
        benchmark({"a": Counted()}, [[FEED]], Settings(warmup=0, rounds=4, iterations=None, **settings))
        return list(seen)

    # 2 ms a call. A pilot call, then 0.4 s in 4 rounds: 200 calls, 50 each.
    assert rounds(duration=0.4) == [1, 50, 50, 50, 50]
    # 5 calls would fill 10 ms; ten are made all the same, 2.5 a round, rounded up.
    assert rounds(duration=0.01) == [1, 3, 3, 3, 3]
    # Warm-up doubles until 9 ms have gone by: 2, 4, 8, 16.
    assert rounds(duration=0.4, warmup_ms=9) == [1, 1, 2, 4, 50, 50, 50, 50]


def test_every_session_fills_the_duration_by_its_own_pace() -> None:
    sessions = {"slow": MemorySession(clock=scripted(10)), "fast": MemorySession(clock=scripted(1))}
    found = benchmark(sessions, [[FEED]], Settings(warmup=1, rounds=2, iterations=None, duration=0.2)).batches[2]
    assert (found["slow"].timings.n, found["fast"].timings.n) == (20, 200)
    assert found["fast"].as_dict()["iterations"] == 100


def test_options_reach_every_session() -> None:
    seen: list[TimingOptions] = []

    class Told(MemorySession):
        def time(self, feeds: Feeds, iterations: int, options: TimingOptions = PLAIN) -> Timings:
            seen.append(options)
            return Timings((1.0,) * iterations, "script")

    options = TimingOptions(streams=2, cuda_graph=True)
    benchmark({"a": Told()}, [[FEED]], Settings(1, 2, 1, timing=options))
    assert seen == [options] * 3


class OnGpu(MemorySession):
    """A call computes for 3 ms and takes 4; with two in flight, 100 calls take 0.2 s."""

    def time(self, feeds: Feeds, iterations: int, options: TimingOptions = PLAIN) -> Timings:
        phases = {GPU_COMPUTE: (3.0,) * iterations, ENQUEUE: (2.9,) * iterations}
        return Timings((4.0,) * iterations, "CUDA events", phases, 0.002 * iterations, {"cuda_graph": False})


def test_throughput_is_by_wall_time_and_phases_are_kept_apart() -> None:
    found = benchmark({"a": OnGpu(), "b": MemorySession()}, [[FEED]], Settings(0, 2, 50)).batches[2]
    record = found["a"].as_dict()
    # 200 images in 0.2 s; by the latencies it would be half.
    assert record["images_per_second"] == pytest.approx(1000)
    assert record["throughput"]["n"] == 2
    assert record["timings"]["phases"]["gpu_compute"]["median"] == 3
    assert record["timings"]["phases"]["enqueue"]["n"] == 100
    assert record["timings"]["settings"] == {"cuda_graph": False}
    assert record["caveats"][0].startswith("enqueue-bound")
    # Absent, not zero, where a session does not tell phases apart.
    assert found["b"].as_dict()["timings"]["phases"] == {}


class Meter(Gpu):
    """A GPU read each second: 50 W all the time, by the counter, and hotter each time."""

    def __init__(self) -> None:
        super().__init__("A100", "580.1", None, None)  # type: ignore[arg-type]
        object.__setattr__(self, "seconds", iter(range(100)))

    def read(self) -> Reading:
        now = next(self.seconds)  # type: ignore[attr-defined]
        return Reading(float(now), 1410.0, None, 40.0 + now, 51.0, 50.0 * now, ("power cap",) if now == 2 else ())


def test_energy_per_image_is_mean_power_times_wall_time() -> None:
    found = benchmark({"a": OnGpu()}, [[FEED]], Settings(0, 3, 50), gpu=Meter())
    assert found.gpu == "A100, driver 580.1"
    record = found.batches[2]["a"].as_dict(samples=True)
    # Each turn: 50 W for the 0.1 s that 50 calls took of its second, over 100 images.
    energy = record["gpu"]["joules_per_image"]
    assert energy == {"value": pytest.approx(0.05), "low": pytest.approx(0.05), "high": pytest.approx(0.05)}
    # Read after each of three turns.
    assert record["gpu"]["celsius"] == {"min": 41.0, "max": 43.0, "mean": 42.0}
    assert record["gpu"]["watts"]["mean"] == 51.0
    assert "memory_mhz" not in record["gpu"]
    assert record["gpu"]["throttled"] == ["power cap"]
    assert record["rounds"][0]["after"]["joules"] == 50.0


def test_a_gpu_that_did_not_compute_says_nothing_of_the_session() -> None:
    found = benchmark({"a": MemorySession()}, [[FEED]], Settings(0, 3, 5), gpu=Meter()).batches[2]["a"]
    assert found.energy is None
    assert found.as_dict()["gpu"] == {}


def test_samples_are_there_where_asked_for() -> None:
    found = benchmark({"a": MemorySession(clock=scripted(1, 2, 4, 8))}, [[FEED]], Settings(0, 2, 2)).batches[2]["a"]
    assert "rounds" not in found.as_dict()
    rounds = json.loads(json.dumps(found.as_dict(samples=True)))["rounds"]
    assert [r["milliseconds"] for r in rounds] == [pytest.approx([1, 2]), pytest.approx([4, 8])]
    assert rounds[1]["wall_seconds"] == pytest.approx(0.012)


def test_the_script_of_these_tests() -> None:
    clock = scripted(1, 2)
    assert list(islice(iter(clock, None), 4)) == [0.0, 0.001, 0.001, pytest.approx(0.003)]
