"""A GPU by way of NVIDIA's cuda-bindings, whose functions take and give plain handles."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.device import Buffer, Calls, DeviceDescription, Event, Graph, Stream, check_index, cuda_version


class BindingsDevice:
    """A GPU by way of cuda-bindings; see `engines.device.Device`."""

    def __init__(self, call: Calls, index: int) -> None:
        self._call = call
        self._cuda = call.driver
        check_index(index, call(self._cuda.cuDeviceGetCount))
        self._device = self._call(self._cuda.cuDeviceGet, index)
        self._context = self._call(self._cuda.cuDevicePrimaryCtxRetain, self._device)
        self.context = int(self._context)

    def describe(self) -> DeviceDescription:
        """What it is."""
        call, cuda = self._call, self._cuda
        names = cuda.CUdevice_attribute

        def attribute(name: str) -> int:
            return int(call(cuda.cuDeviceGetAttribute, getattr(names, f"CU_DEVICE_ATTRIBUTE_{name}"), self._device))

        with self.active():
            free, total = call(cuda.cuMemGetInfo)
        return DeviceDescription(
            name=call(cuda.cuDeviceGetName, 256, self._device).split(b"\0")[0].decode(),
            compute_capability=(attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")),
            total_bytes=int(total),
            free_bytes=int(free),
            l2_bytes=attribute("L2_CACHE_SIZE"),
            driver=cuda_version(call(cuda.cuDriverGetVersion)),
            implementation=f"cuda-bindings {version('cuda-bindings')}",
        )

    @contextmanager
    def active(self) -> Iterator[None]:
        """Push and pop the primary context."""
        self._call(self._cuda.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            self._call(self._cuda.cuCtxPopCurrent)

    def allocate(self, nbytes: int) -> "_BindingsBuffer":
        """Memory of the GPU."""
        return _BindingsBuffer(self._call, nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> "_BindingsPinned":
        """A page-locked array."""
        return _BindingsPinned(self._call, shape, dtype)

    def stream(self) -> "_BindingsStream":
        """A stream."""
        return _BindingsStream(self._call)

    def event(self, *, spin: bool) -> "_BindingsEvent":
        """An event."""
        return _BindingsEvent(self._call, spin=spin)


class _BindingsBuffer:
    def __init__(self, call: Calls, nbytes: int) -> None:
        self._call = call
        self.nbytes = nbytes
        self.address = int(call(call.driver.cuMemAlloc, nbytes))

    def free(self) -> None:
        self._call(self._call.driver.cuMemFree, self.address)


class _BindingsPinned:
    def __init__(self, call: Calls, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._call = call
        nbytes = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self._address = int(call(call.driver.cuMemHostAlloc, nbytes, 0))
        memory = memoryview((ctypes.c_char * nbytes).from_address(self._address))
        self.array: NDArray[Any] = np.ndarray(shape, dtype, memory)

    def free(self) -> None:
        self._call(self._call.driver.cuMemFreeHost, self._address)


class _BindingsStream:
    def __init__(self, call: Calls) -> None:
        self._call = call
        self._cuda = call.driver
        self._stream = call(self._cuda.cuStreamCreate, int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.handle = int(self._stream)

    def upload(self, target: Buffer, source: NDArray[Any]) -> None:
        self._call(self._cuda.cuMemcpyHtoDAsync, target.address, source.ctypes.data, source.nbytes, self._stream)

    def download(self, target: NDArray[Any], source: Buffer) -> None:
        self._call(self._cuda.cuMemcpyDtoHAsync, target.ctypes.data, source.address, target.nbytes, self._stream)

    def fill(self, target: Buffer, byte: int) -> None:
        self._call(self._cuda.cuMemsetD8Async, target.address, byte, target.nbytes, self._stream)

    def capture(self, work: Callable[[], None]) -> Graph:
        return CapturedGraph(self._call, self.handle, work)

    def synchronize(self) -> None:
        self._call(self._cuda.cuStreamSynchronize, self._stream)

    def close(self) -> None:
        self._call(self._cuda.cuStreamDestroy, self._stream)


class _BindingsEvent:
    def __init__(self, call: Calls, *, spin: bool) -> None:
        self._call = call
        self._cuda = call.driver
        flags = self._cuda.CUevent_flags
        flag = flags.CU_EVENT_DEFAULT if spin else flags.CU_EVENT_BLOCKING_SYNC
        self._event = call(self._cuda.cuEventCreate, int(flag))

    def record(self, stream: Stream) -> None:
        self._call(self._cuda.cuEventRecord, self._event, stream.handle)

    def synchronize(self) -> None:
        self._call(self._cuda.cuEventSynchronize, self._event)

    def milliseconds_since(self, start: Event) -> float:
        assert isinstance(start, _BindingsEvent)
        return float(self._call(self._cuda.cuEventElapsedTime, start._event, self._event))

    def close(self) -> None:
        self._call(self._cuda.cuEventDestroy, self._event)


class CapturedGraph:
    """A graph by way of cuda-bindings, for either implementation's streams: a stream's handle is all it takes."""

    def __init__(self, call: Calls, stream: int, work: Callable[[], None]) -> None:
        self._call = call
        self._cuda = call.driver
        self._stream = stream
        # Other threads may go on calling what cannot be captured: TensorRT and torch have some of their own.
        modes = self._cuda.CUstreamCaptureMode
        call(self._cuda.cuStreamBeginCapture, stream, modes.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            work()
        except BaseException:
            # The capture has to end for the stream to be of use again; that it is invalid is why we are here.
            self._cuda.cuStreamEndCapture(stream)
            raise
        graph = call(self._cuda.cuStreamEndCapture, stream)
        try:
            self._graph = call(self._cuda.cuGraphInstantiate, graph, 0)
        finally:
            call(self._cuda.cuGraphDestroy, graph)

    def launch(self) -> None:
        """Queue it in the stream that it was captured in."""
        self._call(self._cuda.cuGraphLaunch, self._graph, self._stream)

    def close(self) -> None:
        """Destroy it."""
        self._call(self._cuda.cuGraphExecDestroy, self._graph)
