"""A deployment as a test sees it: a folder, and what the command line said."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from cli import main

DEPLOY = ("--count", "24", "--steps", "6", "--test-images", "60")


def lctr(*arguments: object) -> Result:
    """The command line in this process; standard output and error apart."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


@dataclass(frozen=True)
class Deployed:
    """A folder that `lctr deploy` filled, what it printed, and the checkpoint it took."""

    folder: Path
    model: Path
    printed: Result

    @property
    def record(self) -> dict[str, Any]:
        return json.loads(self.printed.stdout)
