"""Warnings: each at its bound and just beyond it."""

import pytest

from engines.caveats import busy_cpu, caveats
from engines.nvml import Reading
from engines.timing import D2H, ENQUEUE, GPU_COMPUTE, H2D, Timings


def on_gpu(enqueue=0.1, h2d=0.1, d2h=0.1, compute=1.0):
    phases = {ENQUEUE: (enqueue,) * 3, H2D: (h2d,) * 3, GPU_COMPUTE: (compute,) * 3, D2H: (d2h,) * 3}
    return Timings((compute + h2d + d2h,) * 3, "CUDA events", phases)


def reading(sm_mhz=1000.0, throttled=()):
    return Reading(0.0, sm_mhz, None, None, None, None, throttled)


def test_a_steady_run_has_none() -> None:
    assert caveats(on_gpu(), [reading(), reading()]) == ()
    assert caveats(on_gpu(enqueue=0.8, h2d=0.99, d2h=0.99), [reading(980.0), reading(1000.0)]) == ()
    assert caveats(Timings((1.0, 1.0), "perf_counter"), ()) == ()


@pytest.mark.parametrize(
    ("timings", "said"),
    [
        (on_gpu(enqueue=0.81), "enqueue-bound: its median 0.810 ms is over 0.8 of the GPU compute time's 1.000 ms"),
        (on_gpu(h2d=1.0), "H2D-bound: copying the inputs takes 1.000 ms and computing 1.000 ms"),
        (on_gpu(d2h=1.5), "D2H-bound: copying the outputs takes 1.500 ms"),
        # Mean 1, deviation 0.03.
        (
            Timings((0.97, 1.03), "perf_counter"),
            "unstable: the latency's coefficient of variation is 3.0 %, over 2.5 %",
        ),
        (
            Timings((1.0, 1.0), "CUDA events", {GPU_COMPUTE: (0.97, 1.03)}),
            "unstable: the GPU compute time's coefficient of variation is 3.0 %",
        ),
    ],
)
def test_timings_are_doubted(timings: Timings, said: str) -> None:
    (found,) = caveats(timings, ())
    assert found.startswith(said)


def test_what_nvml_saw_is_said() -> None:
    found = caveats(on_gpu(), [reading(1000.0, ("power cap",)), reading(979.0), reading(None)])
    assert found == (
        "the GPU was throttled (power cap): cool it, or raise its power limit",
        "the SM clock changed (979 to 1000 MHz): lock it with nvidia-smi -lgc",
    )


def test_load_above_the_cores_is_said() -> None:
    assert busy_cpu(2.0, 2) == ()
    (said,) = busy_cpu(2.1, 2)
    assert said.startswith("the load average was 2.1 on 2 cores before the first call")
