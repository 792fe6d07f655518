"""The vocabulary of a GPU: what a session needs of CUDA, and nothing else. `engines.cuda` implements it.

Everything below `Device.active` is called with the GPU's context current, that is inside a `with device.active()`.
Whatever fails in CUDA raises BackendError with the name of CUDA's error.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import DTypeLike, NDArray

from toolchain.errors import BackendUnavailable


@dataclass(frozen=True)
class DeviceDescription:
    """One GPU.

    Attributes:
        name: as NVIDIA calls it.
        compute_capability: major and minor.
        total_bytes: of its memory.
        free_bytes: of its memory, at the time of asking.
        l2_bytes: size of the L2 cache.
        driver: the newest CUDA version that the driver knows, e.g. `13.0`.
        implementation: package and version that talks to CUDA, e.g. `pycuda 2026.1`.
    """

    name: str
    compute_capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    l2_bytes: int
    driver: str
    implementation: str


class Buffer(Protocol):
    """Memory of the GPU."""

    address: int
    nbytes: int

    def free(self) -> None:
        """Give it back; once."""


class PinnedArray(Protocol):
    """A numpy array in page-locked host memory. `array` must not be touched after `free`."""

    array: NDArray[Any]

    def free(self) -> None:
        """Give it back; once."""


class Graph(Protocol):
    """Captured work, ready to be queued in the stream that it was captured in."""

    def launch(self) -> None:
        """Queue it."""

    def close(self) -> None:
        """Destroy it; once."""


class Stream(Protocol):
    """A queue of work. Nothing but `synchronize` waits for the GPU."""

    handle: int

    def upload(self, target: Buffer, source: NDArray[Any]) -> None:
        """Queue a copy of the contiguous `source`; it overlaps the host only from page-locked memory."""

    def download(self, target: NDArray[Any], source: Buffer) -> None:
        """Queue a copy into the contiguous `target`; see `upload`."""

    def fill(self, target: Buffer, byte: int) -> None:
        """Queue setting every byte."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` queues here, as a graph instead of running it.

        Raises:
            BackendError: something in it cannot be captured, or nothing installed here captures graphs.
        """

    def synchronize(self) -> None:
        """Wait until everything queued has run."""

    def close(self) -> None:
        """Destroy it; once."""


class Event(Protocol):
    """A point in a stream, with the GPU's time of it."""

    def record(self, stream: Stream) -> None:
        """Queue it."""

    def synchronize(self) -> None:
        """Wait until the GPU has passed it."""

    def milliseconds_since(self, start: "Event") -> float:
        """Time on the GPU between two events that it has passed; resolution about 0.5 microseconds."""

    def close(self) -> None:
        """Destroy it; once."""


class Device(Protocol):
    """One GPU and its primary context, which every library of the process shares (torch and TensorRT use it too)."""

    context: int
    """The context's handle."""

    def describe(self) -> DeviceDescription:
        """What it is; needs no current context."""

    def active(self) -> AbstractContextManager[None]:
        """Make its context current on this thread for the block; what was current before is so again afterwards."""

    def allocate(self, nbytes: int) -> Buffer:
        """Memory of the GPU, uninitialized."""

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> PinnedArray:
        """A page-locked array, uninitialized, in C order."""

    def stream(self) -> Stream:
        """A stream that does not wait for the legacy default stream."""

    def event(self, *, spin: bool) -> Event:
        """An event whose `synchronize` spins on a core (as the context's scheduling has it), or sleeps."""


class Calls(Protocol):
    """A package's driver module, every call of which is checked."""

    driver: Any

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` answers, without CUDA's status.

        Raises:
            BackendError: the status is an error; its name is told.
        """


def check_index(index: int, count: int) -> None:
    """Refuse a GPU that is not among CUDA's `count`.

    Raises:
        BackendUnavailable: it is not there.
    """
    if not 0 <= index < count:
        raise BackendUnavailable(f"CUDA has {count} GPUs and none of index {index}: check CUDA_VISIBLE_DEVICES.")


def cuda_version(number: int) -> str:
    """`13.0` for 13000: CUDA counts 1000 per major and 10 per minor version."""
    return f"{number // 1000}.{number % 1000 // 10}"
