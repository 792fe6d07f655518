"""NVML by a module that stands in for NVIDIA's, and by NVIDIA's own where there is no driver."""

import sys
from types import ModuleType

import pytest

from engines import nvml
from engines.nvml import Absent, Gpu, Reading, joules_between, opened_gpu


def library(**answers):
    """`pynvml`, answering what it is told to and refusing all else."""
    module = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def refuse(*_):
        raise NVMLError("Not Supported")

    module.NVMLError = NVMLError
    module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM, module.NVML_TEMPERATURE_GPU = 1, 2, 0
    for name in (
        *("nvmlInit", "nvmlShutdown", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetName"),
        *("nvmlSystemGetDriverVersion", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption"),
        *("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
        *("nvmlDeviceGetClockInfo", "nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"),
    ):
        setattr(module, name, answers.get(name, refuse))
    return module


WORKING = {
    "nvmlInit": lambda: None,
    "nvmlShutdown": lambda: None,
    "nvmlDeviceGetHandleByIndex": lambda index: f"gpu {index}",
    "nvmlDeviceGetHandleByUUID": lambda uuid: f"gpu {uuid}",
    "nvmlDeviceGetName": lambda handle: f"A100 {handle}",
    "nvmlSystemGetDriverVersion": lambda: b"580.1",
    "nvmlDeviceGetPowerUsage": lambda handle: 250_500,
    "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 7_000,
    "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0x4 | 0x40 | 0x1,
    "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 1410, 2: 1593}[kind],
    "nvmlDeviceGetTemperatureV": lambda handle, sensor: 61,
}


def opened(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None, visible: str | None = None):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv(nvml.VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(nvml.VISIBLE, visible)
    with opened_gpu() as gpu:
        return gpu, gpu.read()


def test_everything_is_read_in_our_units(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, found = opened(monkeypatch, library(**WORKING))
    assert (gpu.name, gpu.driver) == ("A100 gpu 0", "580.1")
    # The lowest bit says idle, which throttles nothing.
    assert found == Reading(found.seconds, 1410, 1593, 61, 250.5, 7.0, ("power cap", "hardware thermal slowdown"))


def test_what_the_gpu_does_not_give_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    basic = {name: WORKING[name] for name in list(WORKING)[:6]}
    _, found = opened(monkeypatch, library(**basic))
    assert found == Reading(found.seconds, None, None, None, None, None, ())


def test_older_drivers_are_asked_by_the_older_names(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = dict(WORKING)
    del answers["nvmlDeviceGetTemperatureV"], answers["nvmlDeviceGetCurrentClocksEventReasons"]
    answers["nvmlDeviceGetTemperature"] = lambda handle, sensor: 50
    answers["nvmlDeviceGetCurrentClocksThrottleReasons"] = lambda handle: 0x8
    _, found = opened(monkeypatch, library(**answers))
    assert (found.celsius, found.throttled) == (50, ("hardware slowdown",))


@pytest.mark.parametrize(("visible", "name"), [("2,0", "A100 gpu 2"), ("GPU-5f", "A100 gpu GPU-5f")])
def test_the_gpu_is_the_one_that_cuda_takes(monkeypatch: pytest.MonkeyPatch, visible: str, name: str) -> None:
    gpu, _ = opened(monkeypatch, library(**WORKING), visible)
    assert gpu.name == name


def test_absence_is_a_value_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(monkeypatch, None) == (Absent("NVML: nvidia-ml-py is not installed"), None)
    assert opened(monkeypatch, library()) == (Absent("NVML: no driver"), None)
    gpu, _ = opened(monkeypatch, library(nvmlInit=lambda: None, nvmlShutdown=lambda: None), "3")
    assert gpu == Absent("NVML: no GPU '3' (Not Supported)")


def test_the_library_is_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    opened(monkeypatch, library(**{**WORKING, "nvmlShutdown": lambda: closed.append(True)}))
    assert closed == [True]


def test_nvidias_own_library_says_that_there_is_no_driver() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with opened_gpu() as gpu:
            assert gpu == Absent("NVML: no driver")
    else:
        pynvml.nvmlShutdown()
        pytest.skip("this machine has a driver")


def at(seconds, watts=None, joules=None):
    return Reading(seconds, None, None, None, watts, joules)


def test_energy_is_counted_or_integrated_or_unknown() -> None:
    assert joules_between(at(0, 100, 5), at(2, 300, 11)) == 6
    # The counter is missing on one side: 200 W on average, for 2 s.
    assert joules_between(at(0, 100), at(2, 300, 11)) == 400
    # It was not refreshed in between.
    assert joules_between(at(0, 100, 5), at(2, 300, 5)) == 400
    assert joules_between(at(0, None, 5), at(2, None, 5)) is None
    assert joules_between(at(0), at(2, 300)) is None
    assert joules_between(None, at(2, 300)) is None


def test_a_gpu_takes_the_clock_it_is_given() -> None:
    assert Gpu("A", "1", library(**WORKING), "h", clock=lambda: 12.5).read().seconds == 12.5
