"""What `engines.cuda` does where there is no GPU, and its two packages' names and errors.

pycuda has no wheels and cannot be installed where these tests run, so a module of its shape stands in for it: its real
names are left to the tests marked `gpu`. cuda-bindings is installed, and each name used of it is looked up.
"""

import enum
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import engines.cuda_bindings
from engines import cuda
from engines.cuda_bindings import BindingsDevice
from engines.device import cuda_version
from toolchain.errors import BackendError, BackendUnavailable, UsageError

driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings comes with the extra `rtx`")


def has_gpu() -> bool:
    try:
        return cuda.device() is not None
    except BackendUnavailable:
        return False


@pytest.fixture(autouse=True)
def _forget_devices() -> Iterator[None]:
    cuda._opened.cache_clear()
    yield
    cuda._opened.cache_clear()


def test_importing_it_loads_nothing_and_needs_nothing() -> None:
    program = (
        "import sys; sys.modules['pycuda'] = sys.modules['cuda'] = None; import engines.cuda;"
        "assert not {'cuda.bindings', 'pycuda.driver', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.skipif(has_gpu(), reason="says what happens without a GPU")
def test_cuda_bindings_without_a_driver_is_unavailable_in_one_sentence() -> None:
    for asked in (None, "cuda-bindings"):
        with pytest.raises(
            BackendUnavailable, match=r"^cuda-bindings cannot reach a GPU here \(.*\): install"
        ) as caught:
            cuda.device(implementation=asked)
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is not None


def test_nothing_installed_names_both_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pycuda", "pycuda.driver", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailable, match=r"pycuda \(lctr\[tensorrt\]\) or cuda-bindings \(lctr\[rtx\]\)"):
        cuda.device()


def test_an_unknown_implementation_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'cupy': choose one of pycuda, cuda-bindings"):
        cuda.device(implementation="cupy")


def test_cudas_version_is_read_as_it_counts() -> None:
    assert [cuda_version(n) for n in (12080, 13000, 13020)] == ["12.8", "13.0", "13.2"]


def test_every_name_used_of_cuda_bindings_exists() -> None:
    source = Path(engines.cuda_bindings.__file__).read_text()
    functions = set(re.findall(r"_cuda\.(\w+)|driver\.(\w+)|\bcuda\.(cu\w+|CU\w+)", source))
    names = {name for groups in functions for name in groups if name}
    assert {"cuMemAlloc", "cuGraphInstantiate", "CUstreamCaptureMode", "CUevent_flags", "cuMemGetInfo"} <= names
    assert not [name for name in names if not hasattr(driver, name)]


@pytest.mark.parametrize(
    ("enumeration", "member"),
    [
        ("CUresult", "CUDA_SUCCESS"),
        ("CUstreamCaptureMode", "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"),
        ("CUevent_flags", "CU_EVENT_DEFAULT"),
        ("CUevent_flags", "CU_EVENT_BLOCKING_SYNC"),
        ("CUstream_flags", "CU_STREAM_NON_BLOCKING"),
        ("CUdevice_attribute", "CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE"),
        ("CUdevice_attribute", "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR"),
        ("CUdevice_attribute", "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR"),
    ],
)
def test_every_member_used_of_its_enumerations_exists(enumeration: str, member: str) -> None:
    assert member in getattr(driver, enumeration).__members__


class Scripted:
    """`cuda.bindings.driver` with some functions replaced; the enumerations and handles are the real ones."""

    def __init__(self, **answers: tuple[Any, ...]) -> None:
        self.calls: list[str] = []
        self.answers = answers

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            return getattr(driver, name)
        assert hasattr(driver, name)

        def function(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            return self.answers.get(name, (driver.CUresult.CUDA_SUCCESS, 1))

        function.__name__ = name
        return function


def bindings_device(monkeypatch: pytest.MonkeyPatch, **answers: tuple[Any, ...]) -> tuple[Any, Scripted]:
    scripted = Scripted(**answers)
    monkeypatch.setattr("cuda.bindings.driver", scripted)
    return cuda.device(implementation="cuda-bindings"), scripted


def test_an_error_code_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    invalid = driver.CUresult.CUDA_ERROR_INVALID_VALUE
    device, _ = bindings_device(
        monkeypatch, cuMemAlloc=(driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY, None), cuStreamCreate=(invalid, None)
    )
    with pytest.raises(BackendError, match="cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY: use a smaller batch"):
        device.allocate(1 << 50)
    with pytest.raises(BackendError, match="cuStreamCreate failed: CUDA_ERROR_INVALID_VALUE: look at the GPU"):
        device.stream()


def test_no_gpu_behind_a_driver_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendUnavailable, match="cuInit failed: CUDA_ERROR_NO_DEVICE"):
        bindings_device(monkeypatch, cuInit=(driver.CUresult.CUDA_ERROR_NO_DEVICE,))


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings_device(monkeypatch)
    with pytest.raises(BackendUnavailable, match="CUDA has 1 GPUs and none of index 3: check CUDA_VISIBLE_DEVICES"):
        cuda.device(3, "cuda-bindings")


def test_one_device_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    device, scripted = bindings_device(monkeypatch)
    assert isinstance(device, BindingsDevice)
    assert cuda.device(implementation="cuda-bindings") is device
    assert scripted.calls.count("cuDevicePrimaryCtxRetain") == 1
    assert "cuCtxCreate" not in scripted.calls


def test_the_context_before_is_current_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    device, scripted = bindings_device(monkeypatch)
    with pytest.raises(KeyError), device.active():
        raise KeyError
    assert scripted.calls[-2:] == ["cuCtxPushCurrent", "cuCtxPopCurrent"]


def test_a_capture_that_fails_ends_so_that_the_stream_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    device, scripted = bindings_device(monkeypatch)
    stream = device.stream()

    def work() -> None:
        raise BackendError("not in a graph.")

    with pytest.raises(BackendError, match="not in a graph"):
        stream.capture(work)
    assert scripted.calls[-2:] == ["cuStreamBeginCapture", "cuStreamEndCapture"]


def test_a_captured_graph_is_instantiated_once_and_its_template_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    device, scripted = bindings_device(monkeypatch)
    graph = device.stream().capture(lambda: None)
    graph.launch()
    graph.close()
    expected = ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy"]
    assert scripted.calls[-6:] == [*expected, "cuGraphLaunch", "cuGraphExecDestroy"]


class PycudaError(Exception):
    pass


class PycudaFlags(enum.IntEnum):
    DEFAULT = 0
    BLOCKING_SYNC = 1


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the shape of `pycuda.driver`, with one GPU."""

    class Context:
        handle = 7
        depth = 0

        def push(self) -> None:
            Context.depth += 1

        @staticmethod
        def pop() -> None:
            Context.depth -= 1

        def detach(self) -> None:
            """When the process ends."""

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        @staticmethod
        def count() -> int:
            return 1

        def retain_primary_context(self) -> Context:
            return Context()

    class Stream:
        handle = 5

        def __init__(self, flags: int) -> None:
            assert flags == int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)

    def mem_alloc(nbytes: int) -> None:
        raise PycudaError("cuMemAlloc failed: out of memory")

    package, module = ModuleType("pycuda"), ModuleType("pycuda.driver")
    members = {"Error": PycudaError, "init": lambda: None, "Device": Device, "Stream": Stream, "mem_alloc": mem_alloc}
    for name, member in {**members, "Context": Context, "event_flags": PycudaFlags}.items():
        setattr(module, name, member)
    package.driver = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", module)
    return module


def test_pycuda_comes_first_and_lends_the_primary_context(pycuda: ModuleType) -> None:
    device = cuda.device()
    assert device is cuda.device(implementation="pycuda")
    assert device.context == 7
    with device.active():
        assert pycuda.Context.depth == 1
    # pycuda aborts a process that ends with a context of its own current.
    assert pycuda.Context.depth == 0


def test_pycudas_errors_are_ours(pycuda: ModuleType) -> None:
    with pytest.raises(BackendError, match="cuMemAlloc failed: out of memory: use a smaller batch") as caught:
        cuda.device().allocate(1 << 50)
    assert isinstance(caught.value.__cause__, PycudaError)


def test_pycuda_alone_captures_no_graph_and_says_what_does(pycuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match="pycuda captures no CUDA graphs: install cuda-bindings beside it"):
        cuda.device().stream().capture(lambda: None)


def test_pycudas_streams_are_captured_by_cuda_bindings(pycuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted()
    monkeypatch.setattr("cuda.bindings.driver", scripted)
    cuda.device(implementation="pycuda").stream().capture(lambda: None)
    assert "cuGraphInstantiate" in scripted.calls


def test_pycuda_without_a_driver_gives_way_or_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        """What the import system does where pycuda is built and `libcuda.so.1` is missing."""

        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name == "pycuda":
                raise ImportError("libcuda.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])
    with pytest.raises(BackendUnavailable, match=r"^pycuda cannot reach a GPU here \(libcuda\.so\.1: cannot open"):
        cuda.device(implementation="pycuda")


def test_page_locked_memory_is_an_array_of_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = np.arange(6, dtype=np.float16)
    device, scripted = bindings_device(monkeypatch, cuMemHostAlloc=(driver.CUresult.CUDA_SUCCESS, memory.ctypes.data))
    pinned = device.pinned((2, 3), np.float16)
    np.testing.assert_array_equal(pinned.array, memory.reshape(2, 3))
    pinned.array[1, 2] = 9
    assert memory[5] == 9
    pinned.free()
    assert scripted.calls[-1] == "cuMemFreeHost"
