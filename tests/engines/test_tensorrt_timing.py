"""The clock of `running`: phases, graphs, streams and what a timing leaves behind, on the GPU of `fake_tensorrt`."""

from typing import Any

import numpy as np
import pytest
from fake_tensorrt import (
    DOWNLOAD,
    GRAPH,
    KERNELS,
    UPLOAD,
    Event,
    FakeContext,
    FakeGPU,
    FakeVendor,
    Graph,
    Stream,
    images,
    opened,
)

from engines.timing import TimingOptions
from toolchain.errors import BackendError, UsageError


def test_phases_are_the_gpus_time_and_latency_their_sum(vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        timings = session.time(images(2), 3, TimingOptions(cuda_graph=False))
    assert timings.milliseconds == (UPLOAD + KERNELS + DOWNLOAD,) * 3
    assert timings.phases["h2d"] == (UPLOAD,) * 3
    assert timings.phases["gpu_compute"] == (KERNELS,) * 3
    assert timings.phases["d2h"] == (DOWNLOAD,) * 3
    assert min(timings.phases["enqueue"]) > 0
    assert timings.clock == "CUDA events"
    assert timings.wall_seconds is not None
    assert timings.wall_seconds > 0


def test_without_transfers_latency_is_the_compute(gpu: FakeGPU, vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        session.run(images(1))
        gpu.log.clear()
        timings = session.time(images(2), 4, TimingOptions(cuda_graph=False, transfers=False))
        assert timings.milliseconds == (KERNELS,) * 4
        assert set(timings.phases) == {"gpu_compute", "enqueue"}
        # The call before the timing alone copies: the arrays are on the GPU.
        assert gpu.log.count("upload") == gpu.log.count("download") == 1


def test_a_graph_is_replayed_where_it_can_be_captured(gpu: FakeGPU, vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        for _ in range(2):
            timings = session.time(images(2), 3)
            assert timings.settings["cuda_graph"] is True
            assert timings.phases["gpu_compute"] == (GRAPH,) * 3
        assert gpu.log.count("graph") == 1
        np.testing.assert_array_equal(session.run(images(2))["sum"], [6, 24])
        np.testing.assert_array_equal(session.run(images(1))["sum"], [6])
        assert not [held for held in gpu.alive if isinstance(held, Graph)]


def test_where_it_cannot_the_settings_say_so(gpu: FakeGPU, vendor: FakeVendor) -> None:
    gpu.capturable = False
    with opened(vendor) as session:
        timings = session.time(images(2), 3)
        assert timings.settings["cuda_graph"] is False
        assert timings.phases["gpu_compute"] == (KERNELS,) * 3
        with pytest.raises(
            BackendError, match=r"cannot run as a CUDA graph \(.*capturing.*\): leave the CUDA graph out"
        ):
            session.time(images(2), 3, TimingOptions(cuda_graph=True))


def test_a_vendor_that_knows_beforehand_is_asked(gpu: FakeGPU, vendor: FakeVendor, monkeypatch: Any) -> None:
    monkeypatch.setattr(FakeContext, "is_stream_capturable", lambda context, stream: False, raising=False)
    with opened(vendor) as session:
        assert session.time(images(2), 3).settings["cuda_graph"] is False
        monkeypatch.setattr(FakeContext, "is_stream_capturable", lambda context, stream: True)
        assert session.time(images(2), 3).settings["cuda_graph"] is True


def test_nothing_is_allocated_between_the_first_call_and_the_last(gpu: FakeGPU, vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        session.time(images(2), 5, TimingOptions(cuda_graph=False, cold_cache=True))
    timed = gpu.log[gpu.log.index("flush") :]
    assert not [what for what in timed if what.split()[0] in ("allocate", "pin", "stream", "event")]
    assert timed.count("kernels") == 5


def test_one_call_is_queued_ahead(gpu: FakeGPU, vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        session.run(images(1))
        gpu.log.clear()
        session.time(images(1), 4, TimingOptions(cuda_graph=False))
    order = [what for what in gpu.log if what in ("kernels", "wait")]
    assert order == ["kernels", *["kernels"] * 2, "wait", "kernels", "wait", "kernels", "wait", "wait"]


def test_streams_run_on_contexts_of_their_own(gpu: FakeGPU, vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        timings = session.time(images(2), 7, TimingOptions(cuda_graph=False, streams=3))
        assert vendor.contexts == 3
        assert len([h for h in gpu.alive if isinstance(h, Stream)]) == 3
        assert timings.n == 7
        assert timings.settings["streams"] == 3
        session.time(images(2), 1, TimingOptions(streams=2))
        assert vendor.contexts == 3


@pytest.mark.parametrize("spin", [False, True])
def test_spin_wait_chooses_how_an_event_is_waited_for(gpu: FakeGPU, vendor: FakeVendor, spin: bool) -> None:
    with opened(vendor) as session:
        timings = session.time(images(1), 3, TimingOptions(spin_wait=spin))
    assert gpu.waits == [spin] * 3
    assert timings.settings["spin_wait"] is spin


def test_a_cold_cache_is_overwritten_before_every_call_outside_its_time(gpu: FakeGPU, vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        timings = session.time(images(1), 3, TimingOptions(cuda_graph=False, cold_cache=True))
        assert timings.milliseconds == (UPLOAD + KERNELS + DOWNLOAD,) * 3
        assert timings.wall_seconds is None
        assert gpu.log.count("flush") == 3


def test_no_iteration_is_refused_and_frees_its_events(gpu: FakeGPU, vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        with pytest.raises(UsageError, match="0 iterations"):
            session.time(images(1), 0)
        assert not [held for held in gpu.alive if isinstance(held, Event)]
