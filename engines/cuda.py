"""The owner of pycuda and cuda.bindings: opens a GPU with the first where installed, with NVIDIA's bindings otherwise.

Importing this module loads neither. Both implement `engines.device` on the primary context of the GPU, so memory is
shared with torch and TensorRT in the same process; it is retained once and given back when the process ends.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from engines.cuda_bindings import BindingsDevice
from engines.cuda_pycuda import PycudaDevice
from engines.device import Device
from toolchain.errors import BackendError, BackendUnavailable, chosen, first_line

NO_DRIVER = "install NVIDIA's driver, or run on a machine with an NVIDIA GPU"
NO_BINDING = "install pycuda (lctr[tensorrt]) or cuda-bindings (lctr[rtx])"
IMPLEMENTATIONS: dict[str, Callable[[int], Device]] = {
    "pycuda": lambda index: PycudaDevice(_Pycuda(), index, _Bindings),
    "cuda-bindings": lambda index: BindingsDevice(_Bindings(), index),
}
"""In order of preference."""


def device(index: int = 0, implementation: str | None = None) -> Device:
    """The GPU of this index among those that CUDA_VISIBLE_DEVICES leaves, opened once per process.

    Args:
        index: as CUDA counts.
        implementation: `pycuda` or `cuda-bindings`; None: the first of them that works here.

    Raises:
        UsageError: there is no such implementation.
        BackendUnavailable: the implementation is not installed, there is no driver, or no such GPU.
    """
    refusal = BackendUnavailable(f"Nothing that talks to CUDA is installed here: {NO_BINDING}.")
    if implementation is not None:
        chosen("CUDA implementation", implementation, IMPLEMENTATIONS)
    for name in IMPLEMENTATIONS if implementation is None else (implementation,):
        try:
            return _opened(name, index)
        except ModuleNotFoundError:
            continue
        except BackendUnavailable as error:
            refusal = error
    raise refusal


@cache
def _opened(implementation: str, index: int) -> Device:
    return IMPLEMENTATIONS[implementation](index)


class _Bindings:
    """`cuda.bindings.driver`, loaded and initialized; see `engines.device.Calls`."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver

            self.driver = driver
            self(driver.cuInit, 0)
        except ModuleNotFoundError:
            raise
        # The driver's library is looked for by the first call: cuda-pathfinder's DynamicLibNotFoundError.
        except (ImportError, RuntimeError, BackendError) as error:
            raise _unavailable("cuda-bindings", error) from error

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        status, *values = function(*arguments)
        if status != self.driver.CUresult.CUDA_SUCCESS:
            raise _failed(f"{function.__name__} failed: {getattr(status, 'name', status)}")
        return values[0] if len(values) == 1 else tuple(values)


class _Pycuda:
    """`pycuda.driver`, loaded and initialized; see `engines.device.Calls`."""

    def __init__(self) -> None:
        try:
            import pycuda.driver as driver

            self.driver = driver
            self(driver.init)
        except ModuleNotFoundError:
            raise
        # The driver's library is looked for by the import.
        except (ImportError, BackendError) as error:
            raise _unavailable("pycuda", error) from error

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self.driver.Error as error:
            raise _failed(str(error)) from error


def _failed(what: str) -> BackendError:
    # CUDA_ERROR_OUT_OF_MEMORY in cuda-bindings, "out of memory" in pycuda.
    memory = "out of memory" in what.lower().replace("_", " ")
    remedy = "use a smaller batch, or free GPU memory" if memory else "look at the GPU with nvidia-smi"
    return BackendError(f"CUDA's {what.strip().rstrip('.')}: {remedy}.")


def _unavailable(binding: str, error: Exception) -> BackendUnavailable:
    return BackendUnavailable(f"{binding} cannot reach a GPU here ({first_line(error)}): {NO_DRIVER}.")
