"""Both implementations of `engines.device` on a real GPU, against numpy and against torch's own clock and context."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from engines import cuda
from engines.device import Device, Event, Stream
from toolchain.errors import BackendError

pytestmark = pytest.mark.gpu
INSTALLED = [name for name in ("pycuda", "cuda-bindings") if find_spec(name.replace("cuda-bindings", "cuda"))]
MIB = 1 << 20


@pytest.fixture(params=INSTALLED)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened = cuda.device(implementation=request.param)
    with opened.active():
        yield opened


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def stream(device: Device, stack: ExitStack) -> Stream:
    made = device.stream()
    stack.callback(made.close)
    return made


@pytest.fixture
def torch() -> Any:
    module = pytest.importorskip("torch", reason="torch's clock and context are what we compare with")
    if not module.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return module


def events(device: Device, stack: ExitStack, *, spin: bool) -> tuple[Event, Event]:
    pair = device.event(spin=spin), device.event(spin=spin)
    for event in pair:
        stack.callback(event.close)
    return pair


def test_the_description_is_a_gpus(device: Device) -> None:
    described = device.describe()
    assert described.name
    assert described.compute_capability >= (5, 0)
    assert 0 < described.free_bytes <= described.total_bytes
    assert 256 * 1024 <= described.l2_bytes < described.total_bytes
    assert int(described.driver.split(".")[0]) >= 11
    assert described.implementation.split()[0] in INSTALLED


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_])
def test_arrays_come_back_as_they_went(device: Device, stream: Stream, stack: ExitStack, dtype: Any) -> None:
    values = np.random.default_rng(0).integers(0, 2, (3, 5, 7)).astype(dtype)
    there, back = (device.pinned(values.shape, dtype) for _ in range(2))
    buffer = device.allocate(values.nbytes)
    for held in (there, back, buffer):
        stack.callback(held.free)
    there.array[...] = values
    back.array[...] = 0
    stream.upload(buffer, there.array)
    stream.download(back.array, buffer)
    stream.synchronize()
    np.testing.assert_array_equal(back.array, values)


def test_fill_sets_every_byte(device: Device, stream: Stream, stack: ExitStack) -> None:
    buffer, host = device.allocate(1000), device.pinned((1000,), np.uint8)
    stack.callback(buffer.free)
    stack.callback(host.free)
    stream.fill(buffer, 0xA5)
    stream.download(host.array, buffer)
    stream.synchronize()
    assert set(host.array) == {0xA5}


@pytest.mark.parametrize("spin", [False, True])
def test_events_agree_with_the_hosts_clock(device: Device, stream: Stream, stack: ExitStack, spin: bool) -> None:
    buffer = device.allocate(512 * MIB)
    stack.callback(buffer.free)
    start, end = events(device, stack, spin=spin)
    stream.fill(buffer, 0)
    stream.synchronize()
    begun = time.perf_counter()
    start.record(stream)
    for _ in range(100):
        stream.fill(buffer, 1)
    end.record(stream)
    end.synchronize()
    host = 1000 * (time.perf_counter() - begun)
    assert end.milliseconds_since(start) == pytest.approx(host, rel=0.1)


def test_a_copy_takes_as_long_as_torch_says(device: Device, stream: Stream, stack: ExitStack, torch: Any) -> None:
    """Page-locked to GPU, 256 MiB: the median of nine by our events and by torch's."""
    host = device.pinned((256 * MIB,), np.uint8)
    buffer = device.allocate(256 * MIB)
    stack.callback(host.free)
    stack.callback(buffer.free)
    start, end = events(device, stack, spin=True)
    tensor = torch.zeros(256 * MIB, dtype=torch.uint8).pin_memory()
    target = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
    theirs = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    ours_ms, theirs_ms = [], []
    for _ in range(9):
        start.record(stream)
        stream.upload(buffer, host.array)
        end.record(stream)
        end.synchronize()
        ours_ms.append(end.milliseconds_since(start))
        theirs[0].record()
        target.copy_(tensor, non_blocking=True)
        theirs[1].record()
        theirs[1].synchronize()
        theirs_ms.append(theirs[0].elapsed_time(theirs[1]))
    assert np.median(ours_ms) == pytest.approx(np.median(theirs_ms), rel=0.15)


def test_a_graph_replays_what_was_captured(device: Device, stream: Stream, stack: ExitStack) -> None:
    if find_spec("cuda") is None:
        pytest.skip("graphs are captured by cuda-bindings, with pycuda's streams too")
    buffer, host = device.allocate(64), device.pinned((64,), np.uint8)
    stack.callback(buffer.free)
    stack.callback(host.free)
    graph = stream.capture(lambda: stream.fill(buffer, 7))
    stack.callback(graph.close)
    for before in (1, 2):
        stream.fill(buffer, before)
        graph.launch()
        stream.download(host.array, buffer)
        stream.synchronize()
        assert set(host.array) == {7}


def test_what_cannot_be_captured_is_refused_and_the_stream_lives_on(
    device: Device, stream: Stream, stack: ExitStack
) -> None:
    if find_spec("cuda") is None:
        pytest.skip("graphs are captured by cuda-bindings, with pycuda's streams too")
    buffer = device.allocate(64)
    stack.callback(buffer.free)
    with pytest.raises(BackendError, match=r"(?i)captur"):
        stream.capture(stream.synchronize)
    stream.fill(buffer, 1)
    stream.synchronize()


def test_torch_works_in_the_same_context(device: Device, torch: Any) -> None:
    bindings = pytest.importorskip("cuda.bindings.driver", reason="asks which context is current")

    def torchs_context() -> int:
        torch.ones(1, device="cuda")
        status, current = bindings.cuCtxGetCurrent()
        assert status == bindings.CUresult.CUDA_SUCCESS
        return int(current)

    # A new thread has no context but the one that torch takes.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torchs_context).result() == device.context
    before = torch.ones(1000, device="cuda")
    buffer = device.allocate(MIB)
    after = torch.ones(1000, device="cuda")
    buffer.free()
    assert float((before + after).sum()) == 2000


def test_both_implementations_share_one_context() -> None:
    assert len({cuda.device(implementation=name).context for name in INSTALLED}) == 1


def test_memory_stays_flat(device: Device) -> None:
    def cycle() -> None:
        with ExitStack() as stack:
            buffer, host = device.allocate(16 * MIB), device.pinned((MIB,), np.uint8)
            stack.callback(buffer.free)
            stack.callback(host.free)
            stream, event = device.stream(), device.event(spin=False)
            stack.callback(stream.close)
            stack.callback(event.close)
            stream.upload(buffer, host.array)
            event.record(stream)
            event.synchronize()

    for _ in range(10):
        cycle()
    free = device.describe().free_bytes
    for _ in range(1000):
        cycle()
    assert free - device.describe().free_bytes <= 2 * MIB


def test_too_much_memory_is_refused_by_name(device: Device) -> None:
    with pytest.raises(BackendError, match=r"(?i)out.of.memory: use a smaller batch"):
        device.allocate(1 << 46)
