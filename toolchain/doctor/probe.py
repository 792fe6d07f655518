"""Imports that may fail in any way, a crash of the interpreter included, in a process of their own."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SECONDS = 60.0
"""Until an import is given up."""
MARK = "answer: "
"""In front of the answer: an import may print whatever it likes."""


@dataclass(frozen=True)
class Probe:
    """What a few lines of Python said of themselves.

    Attributes:
        answer: what they left in `answer`; empty where they failed.
        problem: why they failed, a clause; empty where they did not.
    """

    answer: Mapping[str, Any]
    problem: str = ""


def probed(code: str) -> Probe:
    """Run lines that set `answer` to a dictionary of JSON values, with the import path of this process."""
    program = f"import json, sys\nsys.path[:] = json.loads(sys.argv[1])\n{code}\nprint({MARK!r} + json.dumps(answer))"
    command = [sys.executable, "-c", program, json.dumps(sys.path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return Probe({}, f"does not load within {SECONDS:g} s")
    answers = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if answers and done.returncode == 0:
        return Probe(json.loads(answers[-1]))
    return Probe({}, _problem(done.returncode, done.stderr))


def _problem(status: int, errors: str) -> str:
    if status < 0:
        return f"its import is killed by {signal.Signals(-status).name}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if status == 1 and lines:
        return lines[-1].rstrip(".")
    return f"its import ends the process with status {status}"
