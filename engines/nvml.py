"""Clocks, throttling, temperature, power and energy of the GPU, as NVIDIA's management library counts them.

Read between turns of a benchmark, never during one: a query takes about a millisecond of the host. A figure that the
GPU or its driver does not give is None. The library is loaded when it is asked for, and its absence is a value, for
most machines have none.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

THROTTLING = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""`nvmlClocksEventReasons` that slow a busy GPU down -> in words. An idle one's low clocks, and clocks that somebody
set, are none."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Reading:
    """The GPU at one moment.

    Attributes:
        seconds: when, by a clock of the host.
        sm_mhz, memory_mhz: clocks.
        celsius: temperature of the chip.
        watts: power, as the driver averages it (over up to a second).
        joules: energy since the driver was loaded.
        throttled: reasons why the clocks are lower than they could be.
    """

    seconds: float
    sm_mhz: float | None
    memory_mhz: float | None
    celsius: float | None
    watts: float | None
    joules: float | None
    throttled: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


@dataclass(frozen=True)
class Absent:
    """No GPU to read from.

    Attributes:
        reason: why, in words.
    """

    reason: str

    def read(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Gpu:
    """The GPU that CUDA takes first.

    Attributes:
        name: as the driver calls it.
        driver: its version.
        library: `pynvml`.
        handle: NVML's, of this GPU.
        clock: seconds.
    """

    name: str
    driver: str
    library: ModuleType
    handle: Any
    clock: Callable[[], float] = time.perf_counter

    def read(self) -> Reading:
        """All that can be known now."""
        nvml, handle = self.library, self.handle
        milliwatts = self._first(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        millijoules = self._first(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        # Newer names first, the ones before for drivers that do not know them.
        reasons = self._first(
            lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
            lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        )
        return Reading(
            seconds=self.clock(),
            sm_mhz=self._first(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            memory_mhz=self._first(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            celsius=self._first(
                lambda: nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU),
                lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            ),
            watts=milliwatts / 1000 if milliwatts is not None else None,
            joules=millijoules / 1000 if millijoules is not None else None,
            throttled=tuple(words for bit, words in THROTTLING.items() if int(reasons or 0) & bit),
        )

    def _first(self, *queries: Callable[[], Any]) -> float | None:
        """The first answer; None where the GPU or the library gives none."""
        for query in queries:
            try:
                return float(query())
            except (self.library.NVMLError, AttributeError):
                continue
        return None


@contextmanager
def opened_gpu() -> Iterator[Gpu | Absent]:
    """The GPU to read from, or why there is none; never raises."""
    try:
        import pynvml
    except ImportError:
        yield Absent("NVML: nvidia-ml-py is not installed")
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield Absent("NVML: no driver")
        return
    try:
        yield _gpu(pynvml)
    finally:
        pynvml.nvmlShutdown()


def joules_between(before: Reading | None, after: Reading | None) -> float | None:
    """Energy from one reading to the next: by the counter, else the mean of both powers times the time between them.

    A counter that stands still was not refreshed in between, for no GPU runs on nothing: there the powers count, too.
    """
    if before is None or after is None:
        return None
    if before.joules is not None and after.joules is not None and after.joules > before.joules:
        return after.joules - before.joules
    if before.watts is not None and after.watts is not None:
        return (before.watts + after.watts) / 2 * (after.seconds - before.seconds)
    return None


def _gpu(nvml: ModuleType) -> Gpu | Absent:
    """CUDA's first GPU: the first of CUDA_VISIBLE_DEVICES, where that is set.

    On a machine of several unlike GPUs CUDA orders them as NVML does with CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    first = os.environ.get(VISIBLE, "0").partition(",")[0].strip()
    try:
        by_number = first.isdigit()
        handle = nvml.nvmlDeviceGetHandleByIndex(int(first)) if by_number else nvml.nvmlDeviceGetHandleByUUID(first)
        return Gpu(_text(nvml.nvmlDeviceGetName(handle)), _text(nvml.nvmlSystemGetDriverVersion()), nvml, handle)
    except nvml.NVMLError as error:
        return Absent(f"NVML: no GPU '{first}' ({error})")


def _text(answer: bytes | str) -> str:
    # Bytes before version 11.515 of the package.
    return answer.decode() if isinstance(answer, bytes) else answer
