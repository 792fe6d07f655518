"""The calibration study is measured by `benchmarks/calibration_study.py`; here the least of it runs once."""

import json
from pathlib import Path

import pytest
from benchmark_process import benchmark


@pytest.mark.slow
def test_the_least_study_is_whole_and_is_not_measured_twice(tmp_path: Path) -> None:
    options = ("--least", "--work", tmp_path / "work", "-o", tmp_path / "result")
    done = benchmark("calibration_study.py", *options)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "result" / "study.json").read_text())
    (localizer,) = record["localizers"]
    arms = [run["arm"] for run in localizer["runs"]]
    assert arms == ["noise", "one real image a class", "PSAQ-ViT", "guide-FDDA", "token-FDDA", "real images"]
    assert all({"W8A8", "W6A6"} == set(run["widths"]) for run in localizer["runs"])
    assert {run["arm"] for run in localizer["runs"] if "deciding" in run} == {"token-FDDA", "real images"}
    assert "by which the bound is judged" in (tmp_path / "result" / "study.md").read_text()
    assert record["fine-tuning"]["runs"][0]["arm"] == "no fine-tuning"
    assert record["speed"][0]["pixels"] == 96
    files = {path.name for path in (tmp_path / "result").iterdir()}
    assert files == {"study.json", "study.md", "bundled.png", "bundled-images.jpeg", "fine-tuning.png"}

    again = benchmark("calibration_study.py", *options)
    assert again.returncode == 0, again.stderr
    repeated = json.loads((tmp_path / "result" / "study.json").read_text())
    assert repeated["localizers"] == record["localizers"]
    assert repeated["fine-tuning"] == record["fine-tuning"]
