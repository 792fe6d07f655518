"""Runs an engine of TensorRT or TensorRT-RTX on a GPU, and times it as trtexec does.

The vendor's module is given, never imported here: both have one API as far as this goes, and what only one has is found
with `hasattr`. A call's copies and kernels follow one another in one stream, so its latency is the sum of the three
phases. One call is queued ahead per stream. Copies of one call overlap the kernels of another only with
`TimingOptions.streams` above 1, which is where our throughput differs from trtexec's default.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from engines import cuda
from engines.backend import PLAIN, Feeds
from engines.device import Device
from engines.tensorrt_lane import Lane, TimedCall
from engines.tensorrt_runtime import Runtime
from engines.tensorrt_tensors import tensors_of
from engines.timing import ENQUEUE, TimingOptions, Timings
from toolchain.errors import BackendError

CLOCK = "CUDA events"
AHEAD = 1
"""Calls queued per stream behind the one that runs."""


@contextmanager
def running(
    trt: ModuleType,
    runtime_name: str,
    engine: bytes,
    source: Path,
    metadata: Mapping[str, str],
    *,
    runtime_cache: Path | None = None,
) -> Iterator["TensorRTSession"]:
    """An open session of a serialized engine; everything it holds on the GPU is freed at the end of the block.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        runtime_name: what messages call it.
        engine: its content.
        source: its file, for messages.
        metadata: what travelled with the model.
        runtime_cache: file of kernels that were compiled for this GPU at an earlier run: read where it exists, written
            when the session closes.

    Raises:
        BackendUnavailable: no GPU, no driver, or nothing installed that talks to them.
        BackendError: the runtime refuses the engine.
        UsageError: a runtime cache for a runtime that has none.
        ArtifactError: the runtime cache cannot be written.
    """
    device = cuda.device()
    with device.active():
        runtime = Runtime(trt, runtime_name, engine, source, runtime_cache)
        session = TensorRTSession(runtime, device, metadata)
    try:
        yield session
    finally:
        session.close()


class TensorRTSession:
    """An engine on a GPU; see `engines.backend.Session`."""

    def __init__(self, runtime: Runtime, device: Device, metadata: Mapping[str, str]) -> None:
        self._runtime: Runtime | None = runtime
        self._source = runtime.source
        self._device = device
        self._tensors = tensors_of(runtime.trt, runtime.engine, runtime.source)
        self._lanes: list[Lane] = []
        self.metadata = metadata
        self.taken = tuple(t.as_input() for t in self._tensors.inputs)
        self.inputs = tuple(t.name for t in self._tensors.inputs)
        self.outputs = tuple(t.name for t in self._tensors.outputs)

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Compute every output for one batch; BackendError for feeds that the engine does not take."""
        self._check(feeds)
        with self._device.active():
            return self._called(0, feeds).answers()

    def time(self, feeds: Feeds, iterations: int, options: TimingOptions = PLAIN) -> Timings:
        """Time on the GPU of each call: copies in, kernels, copies out; without transfers the kernels alone.

        Raises:
            BackendError: as `run`, or a CUDA graph is asked for where the engine cannot be captured.
            UsageError: no iteration.
        """
        self._check(feeds)
        with self._device.active(), ExitStack() as stack:
            # A call leaves its inputs on the GPU; besides, TensorRT's calls can be captured from the second one on.
            lanes = [self._called(index, feeds) for index in range(options.streams)]
            captured = self._captured(lanes, options.cuda_graph)
            samples, wall = _timed(self._timed_calls(stack, lanes, options), iterations)
        phases = {name: tuple(sample[name] for sample in samples) for name in (samples[0] if samples else ())}
        on_gpu = [times for name, times in phases.items() if name != ENQUEUE]
        return Timings(
            tuple(sum(times) for times in zip(*on_gpu, strict=True)),
            CLOCK,
            phases,
            # Overwriting the cache is no part of any call, so the wall clock says nothing about them.
            wall_seconds=None if options.cold_cache else wall,
            settings={**asdict(options), "cuda_graph": captured},
        )

    def close(self) -> None:
        """Keep the runtime cache and free everything; afterwards `run` and `time` refuse."""
        runtime, self._runtime = self._runtime, None
        if runtime is None:
            return
        with self._device.active(), ExitStack() as stack:
            stack.callback(runtime.close)
            for lane in self._lanes:
                stack.callback(lane.close)
            self._lanes = []
            runtime.save_cache()

    def _check(self, feeds: Feeds) -> None:
        if self._runtime is None:
            raise BackendError(f"The session of {self._source} is closed: open the engine again.")
        self._tensors.check(feeds, self._source)

    def _called(self, index: int, feeds: Feeds) -> Lane:
        """The lane of this index after one whole call in it."""
        lane = self._lane(index)
        lane.load(feeds)
        lane.upload()
        lane.execute()
        lane.download()
        lane.stream.synchronize()
        return lane

    def _lane(self, index: int) -> Lane:
        """Lanes are made in order, each when it is first used, and kept."""
        runtime = self._runtime
        assert runtime is not None
        if index == len(self._lanes):
            context = runtime.context()
            self._lanes.append(Lane(context, self._device, self._tensors, self._source, runtime.refused))
        return self._lanes[index]

    def _captured(self, lanes: list[Lane], wanted: bool | None) -> bool:
        """Whether every lane now replays a graph."""
        try:
            if wanted is not False:
                for lane in lanes:
                    lane.capture()
                return True
        except BackendError as error:
            if wanted:
                cause = str(error).rstrip(".")
                raise BackendError(
                    f"{self._source} cannot run as a CUDA graph ({cause}): leave the CUDA graph out."
                ) from error
        for lane in lanes:
            lane.release_graph()
        return False

    def _timed_calls(self, stack: ExitStack, lanes: list[Lane], options: TimingOptions) -> list[TimedCall]:
        """Every call that may be queued at a time, the lanes in turn; `stack` frees what they hold."""
        flush = None
        if options.cold_cache:
            flush = self._device.allocate(self._device.describe().l2_bytes)
            stack.callback(flush.free)
        calls = []
        for lane in lanes * (1 + AHEAD):
            call = TimedCall(lane, self._device, spin=options.spin_wait, transfers=options.transfers, flush=flush)
            stack.callback(call.close)
            calls.append(call)
        for lane in lanes:
            # Runs first: after an error, what is still queued may use what is freed.
            stack.callback(lane.stream.synchronize)
        return calls


def _timed(calls: list[TimedCall], iterations: int) -> tuple[list[dict[str, float]], float]:
    """Phases of each call in milliseconds, and seconds from the first one's start to the last one's end."""
    samples = []
    queued: deque[TimedCall] = deque()
    start = time.perf_counter()
    for turn in range(iterations):
        call = calls[turn % len(calls)]
        if len(queued) == len(calls):
            samples.append(queued.popleft().finish())
        call.begin()
        queued.append(call)
    samples.extend(call.finish() for call in queued)
    return samples, time.perf_counter() - start
