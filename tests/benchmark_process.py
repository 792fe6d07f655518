"""A benchmark as it is started from a shell."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def benchmark(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What a script of `benchmarks/` said, and its exit status."""
    command = [sys.executable, ROOT / "benchmarks" / script, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
