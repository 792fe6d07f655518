"""What the harness adds is measured by `benchmarks/harness.py`; here it runs once, on few calls."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def harness(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks" / "harness.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_harness_is_compared_with_a_bare_loop(tmp_path: Path) -> None:
    done = harness("--rounds", 4, "--iterations", 5, "-o", tmp_path / "record.json")
    assert done.returncode in (0, 1), done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["holds"] == (done.returncode == 0)
    assert record["ratio"]["low"] <= record["ratio"]["high"]


@pytest.mark.gpu
def test_on_a_gpu_the_harness_agrees_with_bare_cuda_events(tmp_path: Path) -> None:
    done = harness("--device", "cuda", "-o", tmp_path / "record.json")
    assert done.returncode == 0, done.stdout + done.stderr
