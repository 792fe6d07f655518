"""What the harness adds is measured by `benchmarks/harness.py`; here it runs once, on few calls."""

import json
from pathlib import Path

import pytest
from benchmark_process import benchmark


@pytest.mark.slow
def test_the_harness_is_compared_with_a_bare_loop(tmp_path: Path) -> None:
    done = benchmark("harness.py", "--rounds", 4, "--iterations", 5, "-o", tmp_path / "record.json")
    assert done.returncode in (0, 1), done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["holds"] == (done.returncode == 0)
    assert record["ratio"]["low"] <= record["ratio"]["high"]


@pytest.mark.gpu
def test_on_a_gpu_the_harness_agrees_with_bare_cuda_events(tmp_path: Path) -> None:
    done = benchmark("harness.py", "--device", "cuda", "-o", tmp_path / "record.json")
    assert done.returncode == 0, done.stdout + done.stderr
