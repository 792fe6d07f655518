"""Everything that is looked at, and whether it is enough for a purpose."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from engines.backend import Availability
from toolchain.doctor import runtimes
from toolchain.doctor.extras import extras
from toolchain.doctor.finding import Finding
from toolchain.doctor.machine import hardware
from toolchain.errors import BackendUnavailable, chosen

RUNTIMES = {"onnxruntime": "ONNX Runtime", "torch": "torch", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""Backend -> the finding of what it loads."""
LOOKS = (runtimes.tensorrt, runtimes.tensorrt_rtx, runtimes.cuda, runtimes.torch, runtimes.onnxruntime)


@dataclass(frozen=True)
class Diagnosis:
    """What this machine can do.

    Attributes:
        findings: from the hardware up to the extras.
        backends: name -> what it can do here.
    """

    findings: tuple[Finding, ...]
    backends: Mapping[str, Availability]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "findings": [asdict(finding) for finding in self.findings],
            "backends": {name: asdict(can) for name, can in self.backends.items()},
        }

    def of(self, name: str) -> Finding:
        """The finding of this name."""
        return next(finding for finding in self.findings if finding.name == name)


def diagnose() -> Diagnosis:
    """Look at the machine; nothing that is installed on it can break this."""
    names = runtimes.backends()
    with ThreadPoolExecutor() as pool:
        looks = [pool.submit(look) for look in LOOKS]
        asked = dict(zip(names, pool.map(runtimes.availability, names), strict=True))
        found = [look.result() for look in looks]
    # A backend looks whether its runtime is there; whether that loads, it learns when it is used.
    broken = {finding.name for finding in found if finding.state == "broken"}
    can = {name: runtimes.UNUSABLE if RUNTIMES.get(name) in broken else able for name, able in asked.items()}
    told = (runtimes.backend_finding(name, able) for name, able in can.items())
    return Diagnosis((*hardware(), *found, *told, *extras()), can)


def require(diagnosis: Diagnosis, purpose: str) -> None:
    """Refuse a purpose that this machine does not serve.

    Raises:
        UsageError: no such purpose.
        BackendUnavailable: it cannot work here, and what would change that.
    """
    if reason := chosen("--for", purpose, PURPOSES)(diagnosis):
        raise BackendUnavailable(reason)


def _benchmark(diagnosis: Diagnosis) -> str:
    if any(can.run for can in diagnosis.backends.values()):
        return ""
    runtime = diagnosis.of("ONNX Runtime")
    return f"nothing can be benchmarked here, for no backend runs (ONNX Runtime: {runtime.found}): {runtime.remedy}."


def _build(diagnosis: Diagnosis) -> str:
    if any(can.build for name, can in diagnosis.backends.items() if name.startswith("tensorrt")):
        return ""
    runtime = diagnosis.of("TensorRT-RTX")
    return f"no TensorRT engine can be built here (TensorRT-RTX: {runtime.found}): {runtime.remedy}."


def _train(diagnosis: Diagnosis) -> str:
    for name in ("torch", "extra train"):
        finding = next((found for found in diagnosis.findings if found.name == name), None)
        if finding and finding.state != "ok":
            return f"nothing can be trained here ({name}: {finding.found}): {finding.remedy}."
    return ""


PURPOSES: dict[str, Callable[[Diagnosis], str]] = {"benchmark": _benchmark, "build": _build, "train": _train}
"""What a machine is wanted for -> why it does not serve, or nothing."""
