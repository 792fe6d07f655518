"""What `engines` costs to import on a deployment machine, against the bound of 0.15 s.

    python benchmarks/imports.py -o docs/benchmarks/imports.json

Each module is imported in an interpreter of its own, which says itself how long it took (`-X importtime`), numpy and
everything else that it loads included. The best of many runs is what the code costs: the others waited for the machine.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import markdown, written

BOUND = 0.15
"""Seconds."""
MODULES = ("engines", "engines.backend", "engines.registry", "engines.benchmark", "engines.onnxruntime")
"""From what everything needs to what runs an engine, ONNX Runtime included."""
BOUNDED = MODULES[:4]


def main() -> None:
    """Measure, write the record, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {module: [] for module in MODULES}
    for _ in range(options.runs):
        for module, samples in seconds.items():
            samples.append(_seconds(module))
    found = {name: {"best": min(s), "median": statistics.median(s), "worst": max(s)} for name, s in seconds.items()}
    record: dict[str, Any] = {"runs": options.runs, "seconds": found, "bound": BOUND, "bounded": BOUNDED}
    record["holds"] = all(found[name]["best"] <= BOUND for name in BOUNDED)
    written(record, options.output)
    rows = [[name, *(f"{1000 * f[kind]:.0f}" for kind in ("best", "median", "worst"))] for name, f in found.items()]
    print(markdown(("import", "best, ms", "median", "worst"), rows))


def _seconds(module: str) -> float:
    """Of one import: the interpreter's own table, microseconds in its second column, the module in its last."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    rows = [line.removeprefix("import time:").split("|") for line in table if line.count("|") == 2]
    # A package is a row of its own beside its modules, at the same depth.
    ours = [row for row in rows if row[2].strip() in (module, module.partition(".")[0])]
    return sum(int(row[1]) for row in ours) / 1e6


if __name__ == "__main__":
    main()
