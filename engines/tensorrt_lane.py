"""One execution context of an engine with a stream and buffers of its own, and the calls queued there."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.backend import Feeds
from engines.device import Buffer, Device, Graph, PinnedArray
from engines.tensorrt_tensors import Shape, Tensor, Tensors, output_shapes
from engines.timing import D2H, ENQUEUE, GPU_COMPUTE, H2D
from toolchain.errors import BackendError


class Buffers:
    """Memory for one shape of every tensor, on the GPU and page-locked on the host; all of it or, on an error, none."""

    def __init__(self, device: Device, tensors: tuple[Tensor, ...], shapes: Mapping[str, Shape]) -> None:
        self.on_gpu: dict[str, Buffer] = {}
        self.on_host: dict[str, PinnedArray] = {}
        with ExitStack() as stack:
            for tensor in tensors:
                host = device.pinned(shapes[tensor.name], tensor.dtype)
                stack.callback(host.free)
                # TensorRT wants an address of every tensor, an empty one too.
                buffer = device.allocate(max(1, host.array.nbytes))
                stack.callback(buffer.free)
                self.on_host[tensor.name], self.on_gpu[tensor.name] = host, buffer
            self.free = stack.pop_all().close


class Lane:
    """Queues calls of one execution context: copies in, kernels, copies out, one after the other.

    Args:
        context: the vendor's execution context.
        device: where it runs.
        tensors: of its engine.
        source: the engine's file, for messages.
        refused: what the vendor's logger said, as an error; takes what was tried.
    """

    def __init__(
        self, context: Any, device: Device, tensors: Tensors, source: Path, refused: Callable[[str], BackendError]
    ) -> None:
        self._context = context
        self._device = device
        self._tensors = tensors
        self._source = source
        self._refused = refused
        self._buffers: dict[tuple[Shape, ...], Buffers] = {}
        self._bound: Buffers | None = None
        self._graph: Graph | None = None
        self.stream = device.stream()

    def load(self, feeds: Feeds) -> None:
        """Make the context ready for arrays of these shapes, and put these into page-locked memory."""
        key = tuple(feeds[t.name].shape for t in self._tensors.inputs)
        if self._bound is None or self._buffers.get(key) is not self._bound:
            self._bind(key)
        for tensor in self._tensors.inputs:
            np.copyto(self._buffers[key].on_host[tensor.name].array, feeds[tensor.name])

    def upload(self) -> None:
        """Queue the copies to the GPU."""
        buffers = self._current()
        for tensor in self._tensors.inputs:
            self.stream.upload(buffers.on_gpu[tensor.name], buffers.on_host[tensor.name].array)

    def execute(self) -> None:
        """Queue the kernels: the captured graph where there is one."""
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue()

    def download(self) -> None:
        """Queue the copies from the GPU."""
        buffers = self._current()
        for tensor in self._tensors.outputs:
            self.stream.download(buffers.on_host[tensor.name].array, buffers.on_gpu[tensor.name])

    def answers(self) -> dict[str, NDArray[Any]]:
        """Copies of what was downloaded last."""
        return {t.name: self._current().on_host[t.name].array.copy() for t in self._tensors.outputs}

    def capture(self) -> None:
        """From now on `execute` replays one graph, until `release_graph` or another shape.

        Raises:
            BackendError: it cannot be captured.
        """
        if self._graph is not None:
            return
        # TensorRT-RTX knows beforehand, and a kernel that it compiles in the background would fail the capture.
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self.stream.handle):
            raise self._refused("cannot capture a stream now")
        self._graph = self.stream.capture(self._enqueue)

    def release_graph(self) -> None:
        """From now on `execute` queues kernel by kernel."""
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def close(self) -> None:
        """Wait for what is queued and free everything."""
        with ExitStack() as stack:
            stack.callback(self.stream.close)
            for buffers in self._buffers.values():
                stack.callback(buffers.free)
            stack.callback(self._drop_context)
            stack.callback(self.release_graph)
            stack.callback(self.stream.synchronize)
            self._bound = None

    def _bind(self, key: tuple[Shape, ...]) -> None:
        # A graph holds the addresses and shapes that it was captured with.
        self.release_graph()
        self._bound = None
        for tensor, shape in zip(self._tensors.inputs, key, strict=True):
            if not self._context.set_input_shape(tensor.name, shape):
                raise self._refused(f"takes no shape {list(shape)} for input '{tensor.name}' of {self._source}")
        if key not in self._buffers:
            fed = {t.name: shape for t, shape in zip(self._tensors.inputs, key, strict=True)}
            shapes = {**fed, **output_shapes(self._context, self._tensors.outputs, self._source)}
            self._buffers[key] = Buffers(self._device, self._tensors.inputs + self._tensors.outputs, shapes)
        for name, buffer in self._buffers[key].on_gpu.items():
            if not self._context.set_tensor_address(name, buffer.address):
                raise self._refused(f"takes no memory for '{name}' of {self._source}")
        self._bound = self._buffers[key]

    def _current(self) -> Buffers:
        assert self._bound is not None, "`load` comes first"
        return self._bound

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self.stream.handle):
            raise self._refused(f"cannot run {self._source}")

    def _drop_context(self) -> None:
        self._context = None


class TimedCall:
    """A call with the GPU's time of each phase; its events are used again and again.

    Args:
        lane: where it is queued.
        device: makes the events.
        spin: wait for the end in a busy loop.
        transfers: the copies are part of the call.
        flush: memory of the L2's size, overwritten before the call, outside its time.
    """

    def __init__(self, lane: Lane, device: Device, *, spin: bool, transfers: bool, flush: Buffer | None) -> None:
        self._lane = lane
        self._transfers = transfers
        self._flush = flush
        self._enqueue_ms = 0.0
        self._events = [device.event(spin=spin) for _ in range(4 if transfers else 2)]

    def begin(self) -> None:
        """Queue it."""
        if self._flush is not None:
            self._lane.stream.fill(self._flush, 0)
        steps = [self._lane.execute]
        if self._transfers:
            steps = [self._lane.upload, *steps, self._lane.download]
        start = time.perf_counter_ns()
        self._events[0].record(self._lane.stream)
        for step, end in zip(steps, self._events[1:], strict=True):
            step()
            end.record(self._lane.stream)
        self._enqueue_ms = (time.perf_counter_ns() - start) / 1e6

    def finish(self) -> dict[str, float]:
        """Wait for its end; milliseconds of each phase."""
        self._events[-1].synchronize()
        names = (H2D, GPU_COMPUTE, D2H) if self._transfers else (GPU_COMPUTE,)
        pairs = zip(self._events, self._events[1:], strict=False)
        phases = {name: end.milliseconds_since(start) for name, (start, end) in zip(names, pairs, strict=True)}
        return {**phases, ENQUEUE: self._enqueue_ms}

    def close(self) -> None:
        """Destroy the events."""
        for event in self._events:
            event.close()
