"""A torch module as an open session, on the CPU or a GPU; imported when one is opened, and not before.

On a GPU a call is what trtexec times: inputs copied from pinned memory, the module, outputs copied to pinned memory,
all on one stream, with a CUDA event at each boundary. The module runs as it is, or as a CUDA graph that was captured.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines.backend import PLAIN, Feeds, Input
from engines.feeds import check_arrays, closed
from engines.host_timing import timed_on_host
from engines.timing import D2H, ENQUEUE, GPU_COMPUTE, H2D, TimingOptions, Timings
from toolchain.errors import BackendError, BackendUnavailable, LctrError, UsageError, first_line

Call = Callable[..., tuple[Tensor, ...]]
BATCH_SIZES = 64
"""What Inductor may compile a module for in one process; torch's own bound, 8, is of all sessions together."""
BEFORE_CAPTURE = 3
"""Calls before a capture, as torch's manual asks for: libraries choose kernels and take workspaces in the first."""
REMEDIES = (
    ("CUDA out of memory", "take smaller batches"),
    ("C++ compiler", "install one, such as g++, or leave :compile out"),
    ("ompiler: ", "install a C++ compiler, such as g++, or leave :compile out"),
    ("riton", "install the triton that belongs to this torch, or leave :compile out"),
    ("'Half'", "leave :fp16 out, which this torch does not compute here"),
)
REMEDY = "check the feeds"


class TorchSession:
    """An open module; see `engines.backend.Session`, and `TorchBackend.session_from_module` for the arguments."""

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[Input],
        outputs: Sequence[str],
        metadata: Mapping[str, str],
        source: str,
        *,
        device: str,
        compiled: bool,
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise BackendUnavailable(
                f"{source} cannot run on cuda: torch {torch.__version__} sees no GPU; install a CUDA build of torch."
            )
        module = module.eval().to(device)
        # Whole and of one batch size: torch would otherwise leave parts eager, or compile for any size from the second
        # size on, and say neither.
        self._call: Call | None = torch.compile(module, fullgraph=True, dynamic=False) if compiled else module
        self._compiled, self._device, self._source = compiled, device, source
        self.taken = tuple(inputs)
        self._batches: dict[tuple[object, ...], _GpuBatch] = {}
        self.inputs = tuple(taken.name for taken in inputs)
        self.outputs = tuple(outputs)
        self.metadata = metadata

    def close(self) -> None:
        """Let go of the module and what was captured of it."""
        self._call = None
        self._batches.clear()
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Compute every output for one batch; BackendError for feeds that the module does not take."""
        call = self._checked(feeds)
        with self._running():
            return self._answers(call, self._tensors(feeds))

    def time(self, feeds: Feeds, iterations: int, options: TimingOptions = PLAIN) -> Timings:
        """On the CPU wall time with host arrays in and out; on a GPU CUDA events from pinned memory to pinned memory.

        The module runs once before, so that nothing is compiled or captured while the clock runs.
        """
        call = self._checked(feeds)
        with self._running():
            tensors = self._tensors(feeds)
            self._answers(call, tensors)
            if self._device == "cpu":
                facts = {"device": "cpu", "threads": torch.get_num_threads()}
                run, who = (lambda: self._answers(call, tensors)), "torch on the CPU"
                return timed_on_host(run, iterations, options, who, facts=facts)
            if options.streams > 1:
                raise UsageError(f"torch runs one call at a time here, not {options.streams} streams: leave them out.")
            return self._batch(call, tensors, options.cuda_graph).timed(iterations, options)

    def _checked(self, feeds: Feeds) -> Call:
        if self._call is None:
            raise closed(self._source)
        check_arrays(feeds, self.taken, self._source)
        return self._call

    def _tensors(self, feeds: Feeds) -> list[Tensor]:
        """In the module's order; torch takes no array that is read-only."""
        return [torch.from_numpy(np.require(feeds[name], requirements=["C", "W"])) for name in self.inputs]

    def _answers(self, call: Call, tensors: Sequence[Tensor]) -> dict[str, NDArray[Any]]:
        answers = _as_tuple(call(*(tensor.to(self._device) for tensor in tensors)))
        return {name: answer.cpu().numpy() for name, answer in zip(self.outputs, answers, strict=True)}

    def _batch(self, call: Call, tensors: Sequence[Tensor], capture: bool | None) -> "_GpuBatch":
        """The batch on the GPU with these inputs; buffers and captured graph of a shape are kept."""
        key = (capture, *(tensor.shape for tensor in tensors))
        if key not in self._batches:
            self._batches[key] = _GpuBatch(call, tensors, capture, self._source)
        self._batches[key].take(tensors)
        return self._batches[key]

    @contextmanager
    def _running(self) -> Iterator[None]:
        try:
            with torch.inference_mode(), self._compiling():
                yield
        except LctrError:
            raise
        except Exception as error:  # Compiling raises whatever its many layers raise, some without a base of torch's.
            cause = _root(error)
            remedy = next((what for sign, what in REMEDIES if sign in str(cause)), REMEDY)
            raise BackendError(f"{self._source} failed in torch ({first_line(cause)}): {remedy}.") from error

    def _compiling(self) -> AbstractContextManager[object]:
        if not self._compiled:
            return nullcontext()
        return cast(AbstractContextManager[object], torch._dynamo.config.patch(recompile_limit=BATCH_SIZES))


class _GpuBatch:
    """Batches of one shape on the GPU: pinned host buffers, device buffers, and the captured graph where there is one.

    Args:
        call: the module.
        tensors: inputs on the host.
        capture: as `TimingOptions.cuda_graph`.
        source: what messages call the module.

    Raises:
        BackendError: a graph was asked for, and the module cannot be captured.
    """

    def __init__(self, call: Call, tensors: Sequence[Tensor], capture: bool | None, source: str) -> None:
        self.call, self.source = call, source
        self.host_inputs = [tensor.pin_memory() for tensor in tensors]
        self.inputs = [tensor.to("cuda") for tensor in tensors]
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(BEFORE_CAPTURE):
                self.outputs = _as_tuple(call(*self.inputs))
        self.stream.synchronize()
        if capture is not False:
            self._capture(required=bool(capture))
        self.host_outputs = [torch.empty(o.shape, dtype=o.dtype, pin_memory=True) for o in self.outputs]

    def take(self, tensors: Sequence[Tensor]) -> None:
        """Other inputs of the same shape, on the host and on the GPU."""
        for pinned, here, tensor in zip(self.host_inputs, self.inputs, tensors, strict=True):
            pinned.copy_(tensor)
            here.copy_(tensor)
        torch.cuda.synchronize()

    def timed(self, iterations: int, options: TimingOptions) -> Timings:
        """One call after the other."""
        marks = [torch.cuda.Event(enable_timing=True, blocking=not options.spin_wait) for _ in range(4)]
        chill = _cache_overwriter() if options.cold_cache else None
        phases: dict[str, list[float]] = {phase: [] for phase in (H2D, GPU_COMPUTE, D2H, ENQUEUE)}
        total, began = [], time.perf_counter()
        with torch.cuda.stream(self.stream):
            for _ in range(iterations):
                if chill is not None:
                    chill.zero_()
                start = time.perf_counter()
                self._enqueue(marks, transfers=options.transfers)
                phases[ENQUEUE].append(1000 * (time.perf_counter() - start))
                marks[3].synchronize()
                total.append(marks[0].elapsed_time(marks[3]))
                for phase, before, after in zip((H2D, GPU_COMPUTE, D2H), marks, marks[1:], strict=True):
                    phases[phase].append(before.elapsed_time(after))
        if not options.transfers:
            del phases[H2D], phases[D2H]
        settings: dict[str, Any] = {
            "device": torch.cuda.get_device_name(),
            "cuda_graph": self.graph is not None,
            "spin_wait": options.spin_wait,
            "transfers": options.transfers,
            "streams": 1,
            "cold_cache": options.cold_cache,
        }
        wall = time.perf_counter() - began
        measured = {phase: tuple(samples) for phase, samples in phases.items()}
        return Timings(tuple(total), "CUDA events", measured, wall, settings)

    def _enqueue(self, marks: Sequence[torch.cuda.Event], *, transfers: bool) -> None:
        marks[0].record()
        if transfers:
            for here, pinned in zip(self.inputs, self.host_inputs, strict=True):
                here.copy_(pinned, non_blocking=True)
        marks[1].record()
        if self.graph is not None:
            self.graph.replay()
        else:
            self.outputs = _as_tuple(self.call(*self.inputs))
        marks[2].record()
        if transfers:
            for pinned, here in zip(self.host_outputs, self.outputs, strict=True):
                pinned.copy_(here, non_blocking=True)
        marks[3].record()

    def _capture(self, *, required: bool) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                outputs = _as_tuple(self.call(*self.inputs))
        except RuntimeError as error:
            if required:
                raise BackendError(
                    f"{self.source} cannot be captured as a CUDA graph ({first_line(error)}): time it without one."
                ) from error
            return
        self.graph, self.outputs = graph, outputs


def _cache_overwriter() -> Tensor:
    """Twice as large as the L2 cache: a cache need not evict the oldest line first."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return torch.empty(2 * properties.L2_cache_size, dtype=torch.uint8, device="cuda")


def _as_tuple(answer: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (answer,) if isinstance(answer, Tensor) else tuple(answer)


def _root(error: Exception) -> Exception:
    """What went wrong first: torch wraps what its compilers raise."""
    while isinstance(inner := getattr(error, "inner_exception", None) or error.__cause__, Exception):
        error = inner
    return error
