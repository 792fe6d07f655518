"""What was measured, on disk as soon as it is: a study that was killed goes on where it was."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.artifacts import code_version, writing

CODE = (
    *("calib", "exporters", "toolchain/finetuning", "toolchain/model"),
    *("toolchain/quantization.py", "toolchain/requests.py", "toolchain/teachers.py", "toolchain/data/shapes.py"),
    *("benchmarks/study/residual.py", "benchmarks/study/widths.py"),
)
"""What every figure depends on."""


class Ledger:
    """Results by what they are results of.

    Args:
        path: JSON file; read where there is one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    @property
    def seconds(self) -> float:
        """That everything in it took, whenever it was measured; what images cost is not among it."""
        return sum(float(entry["seconds"]) for entry in self._entries.values())

    def result(self, measure: Callable[[], dict[str, Any]], **key: Any) -> dict[str, Any]:
        """What `measure` returns, or returned before for this key; with the `seconds` that it took."""
        name = json.dumps(key, sort_keys=True)
        if name not in self._entries:
            start = time.perf_counter()
            found = measure()
            self._entries[name] = {**found, "seconds": time.perf_counter() - start}
            with writing(self._path) as temporary:
                temporary.write_text(json.dumps(self._entries, indent=1) + "\n")
        return self._entries[name]


@dataclass(frozen=True)
class Study:
    """Where a study keeps what it makes, and where networks compute that images are made for.

    Attributes:
        room: folder of images and files; of one plan, code and device.
        ledger: of what was measured.
        device: `cpu` or `cuda`; quantized models run on the CPU in any case.
        code: version of all code that a figure depends on.
    """

    room: Path
    ledger: Ledger
    device: str
    code: str


def study_in(work: Path, plan: str, device: str) -> Study:
    """The study of this very plan, code and device: figures of others are not taken for its own."""
    code = code_version(*CODE)[:12]
    room = work / f"{plan}-{device}-{code}"
    return Study(room, Ledger(room / "ledger.json"), device, code)
