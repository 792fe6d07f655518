"""A GPU by way of pycuda, whose objects hold the handles and destroy them."""

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from numpy.typing import DTypeLike, NDArray

from engines.cuda_bindings import CapturedGraph
from engines.device import Buffer, Calls, DeviceDescription, Event, Graph, Stream, check_index, cuda_version
from toolchain.errors import BackendError

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING, for which pycuda has no name."""


class PycudaDevice:
    """A GPU by way of pycuda; see `engines.device.Device`."""

    def __init__(self, call: Calls, index: int, bindings: Callable[[], Calls]) -> None:
        self._call = call
        self._bindings = bindings
        self._cuda = call.driver
        check_index(index, call(self._cuda.Device.count))
        self._device = call(self._cuda.Device, index)
        # What `pycuda.autoprimaryctx` does, without leaving it current: `autoinit` would make a second context.
        self._context = self._call(self._device.retain_primary_context)
        # Left to pycuda's destructor, the context is given back as one that pycuda made, and the driver complains.
        atexit.register(self._context.detach)
        self.context = int(self._context.handle)

    def describe(self) -> DeviceDescription:
        """What it is."""
        l2 = self._cuda.device_attribute.L2_CACHE_SIZE
        with self.active():
            free, total = self._call(self._cuda.mem_get_info)
        return DeviceDescription(
            name=self._call(self._device.name),
            compute_capability=self._call(self._device.compute_capability),
            total_bytes=int(total),
            free_bytes=int(free),
            l2_bytes=int(self._call(self._device.get_attribute, l2)),
            driver=cuda_version(self._call(self._cuda.get_driver_version)),
            implementation=f"pycuda {version('pycuda')}",
        )

    @contextmanager
    def active(self) -> Iterator[None]:
        """Push and pop the primary context: pycuda aborts a process that ends with one of its contexts current."""
        self._call(self._context.push)
        try:
            yield
        finally:
            self._call(self._context.pop)

    def allocate(self, nbytes: int) -> "_PycudaBuffer":
        """Memory of the GPU."""
        return _PycudaBuffer(self._call, nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> "_PycudaPinned":
        """A page-locked array."""
        return _PycudaPinned(self._call, shape, dtype)

    def stream(self) -> "_PycudaStream":
        """A stream."""
        return _PycudaStream(self._call, self._bindings)

    def event(self, *, spin: bool) -> "_PycudaEvent":
        """An event."""
        return _PycudaEvent(self._call, spin=spin)


class _PycudaBuffer:
    def __init__(self, call: Calls, nbytes: int) -> None:
        self._call = call
        self._memory = call(call.driver.mem_alloc, nbytes)
        self.nbytes = nbytes
        self.address = int(self._memory)

    def free(self) -> None:
        self._call(self._memory.free)


class _PycudaPinned:
    def __init__(self, call: Calls, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._call = call
        self.array: NDArray[Any] = call(call.driver.pagelocked_empty, shape, dtype)
        self._memory: Any = self.array.base

    def free(self) -> None:
        self._call(self._memory.free)


class _PycudaStream:
    def __init__(self, call: Calls, bindings: Callable[[], Calls]) -> None:
        self._call = call
        self._bindings = bindings
        self._cuda = call.driver
        self._stream = call(self._cuda.Stream, NON_BLOCKING)
        self.handle = int(self._stream.handle)

    def upload(self, target: Buffer, source: NDArray[Any]) -> None:
        self._call(self._cuda.memcpy_htod_async, target.address, source, self._stream)

    def download(self, target: NDArray[Any], source: Buffer) -> None:
        self._call(self._cuda.memcpy_dtoh_async, target, source.address, self._stream)

    def fill(self, target: Buffer, byte: int) -> None:
        self._call(self._cuda.memset_d8_async, target.address, byte, target.nbytes, self._stream)

    def capture(self, work: Callable[[], None]) -> Graph:
        # pycuda has no graphs (2026.1); cuda-bindings captures on pycuda's stream where both are installed.
        try:
            bindings = self._bindings()
        except ModuleNotFoundError as error:
            raise BackendError(
                "pycuda captures no CUDA graphs: install cuda-bindings beside it, or leave the CUDA graph out."
            ) from error
        return CapturedGraph(bindings, self.handle, work)

    def synchronize(self) -> None:
        self._call(self._stream.synchronize)

    def close(self) -> None:
        del self._stream  # pycuda destroys it with its last reference.


class _PycudaEvent:
    def __init__(self, call: Calls, *, spin: bool) -> None:
        self._call = call
        flags = call.driver.event_flags
        self._event = call(call.driver.Event, int(flags.DEFAULT if spin else flags.BLOCKING_SYNC))

    def record(self, stream: Stream) -> None:
        assert isinstance(stream, _PycudaStream)
        self._call(self._event.record, stream._stream)

    def synchronize(self) -> None:
        self._call(self._event.synchronize)

    def milliseconds_since(self, start: Event) -> float:
        assert isinstance(start, _PycudaEvent)
        return float(self._call(self._event.time_since, start._event))

    def close(self) -> None:
        del self._event  # As a stream.
