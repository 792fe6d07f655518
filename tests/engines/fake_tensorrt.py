"""A vendor and a GPU that compute in numpy, count what is alive, and keep a clock of whole milliseconds.

The vendor's engine answers `sum` (B,), twice the sum over an image, in the type of the input `image` (B, 3).
"""

import enum
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engines.backend import Session
from engines.device import DeviceDescription
from engines.tensorrt_session import running
from toolchain.errors import BackendError

UPLOAD, KERNELS, GRAPH, DOWNLOAD, FLUSH = 1, 5, 3, 2, 100
"""Milliseconds on the GPU's clock."""
L2 = 4096
SOURCE = Path("model.engine")


class FakeGPU:
    """Runs everything at once. `log` holds what happened, `alive` what was made and not given back."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.alive: list[Any] = []
        self.memory: dict[int, np.ndarray] = {}
        self.clock = 0
        self.depth = 0
        self.full = False
        self.capturable = True
        self.capturing = False
        self.waits: list[bool] = []
        self.context = 7

    def spend(self, what: str, ms: int) -> None:
        assert self.depth, f"{what} without a current context"
        self.log.append(what)
        self.clock += ms

    @contextmanager
    def active(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def describe(self) -> DeviceDescription:
        return DeviceDescription("fake", (8, 9), 1 << 30, 1 << 29, L2, "13.0", "fake 1")

    def allocate(self, nbytes: int) -> "Held":
        if self.full:
            raise BackendError("CUDA's cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY: use a smaller batch.")
        held = Held(self, f"allocate {nbytes}")
        held.nbytes, held.address = nbytes, 1000 + len(self.log)
        self.memory[held.address] = np.zeros(nbytes, np.uint8)
        return held

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> "Held":
        held = Held(self, f"pin {shape}")
        held.array = np.zeros(shape, dtype)
        return held

    def stream(self) -> "Stream":
        return Stream(self, "stream")

    def event(self, *, spin: bool) -> "Event":
        made = Event(self, "event")
        made.spin = spin
        return made


class Held:
    """Something that has to be given back exactly once."""

    nbytes: int
    address: int
    array: np.ndarray

    def __init__(self, gpu: FakeGPU, what: str) -> None:
        self.gpu = gpu
        gpu.spend(what, 0)
        gpu.alive.append(self)

    def free(self) -> None:
        assert self.gpu.depth
        self.gpu.alive.remove(self)

    close = free


class Stream(Held):
    @property
    def handle(self) -> int:
        return id(self)

    def upload(self, target: Held, source: np.ndarray) -> None:
        self.gpu.memory[target.address][:] = np.frombuffer(source.tobytes(), np.uint8)
        self.gpu.spend("upload", UPLOAD)

    def download(self, target: np.ndarray, source: Held) -> None:
        target[...] = self.gpu.memory[source.address].view(target.dtype).reshape(target.shape)
        self.gpu.spend("download", DOWNLOAD)

    def fill(self, target: Held, byte: int) -> None:
        assert target.nbytes == L2
        self.gpu.spend("flush", FLUSH)

    def capture(self, work: Callable[[], None]) -> "Graph":
        self.gpu.capturing = True
        try:
            work()
        finally:
            self.gpu.capturing = False
        graph = Graph(self.gpu, "graph")
        graph.work = work
        return graph

    def synchronize(self) -> None:
        assert self.gpu.depth


class Graph(Held):
    work: Callable[[], None]

    def launch(self) -> None:
        """Computes as the work does, and takes less time for it."""
        self.work()
        self.gpu.clock += GRAPH - KERNELS
        self.gpu.log.append("graph launch")


class Event(Held):
    spin: bool
    at = -1

    def record(self, stream: Stream) -> None:
        self.at = self.gpu.clock

    def synchronize(self) -> None:
        assert self.at >= 0
        self.gpu.waits.append(self.spin)
        self.gpu.log.append("wait")

    def milliseconds_since(self, start: "Event") -> float:
        return float(self.at - start.at)


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT64 = "int64"
    BOOL = "bool"
    BF16 = ""


class FakeVendor(ModuleType):
    """What `running` needs of `tensorrt`; the engine's content is not looked at."""

    DataType = DataType
    TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
    TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(
        self, gpu: FakeGPU, input_type: DataType = DataType.FLOAT, output_type: DataType | None = None
    ) -> None:
        super().__init__("fake_vendor")
        self.gpu = gpu
        self.types = {"image": input_type, "sum": output_type or input_type}
        self.locations = dict.fromkeys(self.types, self.TensorLocation.DEVICE)
        self.output_batch: int | None = None
        self.refuses = ""
        self.cache: FakeCache | None = None
        self.contexts = 0
        self.Runtime = lambda logger: FakeRuntime(self, logger)

    @staticmethod
    def nptype(dtype: DataType) -> Any:
        if not dtype.value:
            raise TypeError("no such type in numpy")
        return np.dtype(dtype.value).type


class FakeRuntime:
    def __init__(self, trt: FakeVendor, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, content: bytes) -> "FakeEngine | None":
        if content != b"engine":
            self.logger.log(self.trt.ILogger.WARNING, "a warning is no cause")
            self.logger.log(self.trt.ILogger.ERROR, "magic tag does not match.\nsecond line")
            return None
        return FakeEngine(self.trt, self.logger) if self.trt.cache is None else FakeCachingEngine(self.trt, self.logger)


class FakeEngine:
    num_io_tensors = 2

    def __init__(self, trt: FakeVendor, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        trt.contexts = 0

    def get_tensor_name(self, index: int) -> str:
        return ("image", "sum")[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name == "image" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        return self.trt.locations[name]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.trt.types[name]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3) if name == "image" else (-1,)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, int]]:
        assert (name, profile) == ("image", 0)
        return [(1, 3), (2, 3), (4, 3)]

    def create_execution_context(self, *config: Any) -> "FakeContext":
        self.trt.contexts += 1
        return FakeContext(self.trt, self.logger)


class FakeContext:
    def __init__(self, trt: FakeVendor, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.trt.output_batch or self.shape[0],)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        gpu = self.trt.gpu
        if self.trt.refuses or (gpu.capturing and not gpu.capturable):
            self.logger.log(
                self.trt.ILogger.ERROR, self.trt.refuses or "operation not permitted when stream is capturing"
            )
            return False
        image = gpu.memory[self.addresses["image"]].view(self.trt.nptype(self.trt.types["image"])).reshape(self.shape)
        answer = (2 * image.sum(1)).astype(self.trt.nptype(self.trt.types["sum"]))
        gpu.memory[self.addresses["sum"]][:] = answer.view(np.uint8)
        gpu.spend("kernels", 0 if gpu.capturing else KERNELS)
        return True


class FakeCache:
    """TensorRT-RTX's: takes back only what it wrote; what runs makes it grow."""

    content = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content if content.startswith(b"kernels") else b""
        return bool(self.content)

    def serialize(self) -> bytes:
        return self.content or b"kernels of today"


class FakeCachingEngine(FakeEngine):
    def create_runtime_config(self) -> "FakeCachingEngine":
        return self

    def create_runtime_cache(self) -> FakeCache:
        assert self.trt.cache is not None
        return self.trt.cache

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        return cache is self.trt.cache


def opened(vendor: FakeVendor, **options: Any) -> AbstractContextManager[Session]:
    return running(vendor, "TensorRT", b"engine", SOURCE, {"tau": "0.3"}, **options)


def images(batch: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    return {"image": np.arange(3 * batch).reshape(batch, 3).astype(dtype)}
