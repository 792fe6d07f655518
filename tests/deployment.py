"""A deployment as a test sees it: a folder, what the command line said, and the machine that it goes to."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from cli import TRAINING_STACK, main

DEPLOY = ("--count", "24", "--steps", "6", "--test-images", "60")
DEPLOYMENT_MACHINE = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in {TRAINING_STACK}
        return None if absent else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
from cli import main
main()
"""
"""The command line where the training stack is not installed."""


def lctr(*arguments: object) -> Result:
    """The command line in this process; standard output and error apart."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(*arguments: object, code: int = 1) -> str:
    """What a failing command says: one sentence on standard error, nothing on standard output."""
    told = lctr(*arguments)
    assert told.exit_code == code, told.output
    assert isinstance(told.exception, SystemExit), told.exc_info
    assert (told.stdout, told.stderr.count("\n")) == ("", 1)
    assert told.stderr.startswith("Error: ")
    return told.stderr.strip()


def python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@dataclass(frozen=True)
class Deployed:
    """A folder that `lctr deploy` filled, what it printed, and the checkpoint it took."""

    folder: Path
    model: Path
    printed: Result

    @property
    def record(self) -> dict[str, Any]:
        return json.loads(self.printed.stdout)
