"""What `doctor` says of machines that were made up: drivers, extras, and packages that crash when they are imported."""

import json
import os
import subprocess
import sys
from importlib import invalidate_caches
from pathlib import Path

import pytest
from click.testing import Result
from deployment import lctr

from engines.backend import Availability
from toolchain.doctor import probe, runtimes
from toolchain.doctor.diagnosis import Diagnosis, require
from toolchain.doctor.extras import extras
from toolchain.doctor.finding import Finding
from toolchain.doctor.machine import hardware
from toolchain.errors import BackendUnavailable

SMI = """#!/bin/sh
case "$*" in
*query-gpu=name,compute_cap,memory.total*) printf '%s\\n' {gpus} ;;
*query-gpu*) exit 9 ;;
*) echo '| NVIDIA-SMI 580.65   Driver Version: 580.65   CUDA Version: 13.0 |' ;;
esac
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of the installed packages; no `nvidia-smi` but one that a test puts there."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def plant(site: Path, module: str, code: str) -> None:
    path = site / f"{module.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent != site and not (path.parent / "__init__.py").exists():
        (path.parent / "__init__.py").write_text("")
    path.write_text(code)
    invalidate_caches()


def plant_distribution(site: Path, name: str, version: str, *requirements: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    asked = "".join(f"Requires-Dist: {line}\n" for line in requirements)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{asked}")
    invalidate_caches()


def plant_gpus(site: Path, *lines: str) -> None:
    script = site / "nvidia-smi"
    script.write_text(SMI.format(gpus=" ".join(f"'{line}'" for line in lines)))
    script.chmod(0o755)


def quick(site: Path) -> None:
    """Stand-ins for what takes seconds to import."""
    cuda = "class cuda:\n    is_available = staticmethod(lambda: True)\n"
    plant(site, "torch", f"class version:\n    cuda = '13.0'\n{cuda}__version__ = '9.1+cu130'\n")
    plant(site, "onnxruntime", "__version__ = '9.2'\nget_available_providers = lambda: ['CPUExecutionProvider']\n")


def named(told: Result) -> dict[str, dict[str, str]]:
    found = json.loads(told.stdout)["findings"]
    names = [finding["name"] for finding in found]
    assert len(names) == len(set(names))
    return {finding["name"]: finding for finding in found}


def test_what_crashes_when_imported_does_not_hurt(site: Path) -> None:
    plant(site, "torch", "import os\nos.abort()\n")
    plant(site, "onnxruntime", "import sys\nsys.exit()\n")
    plant(site, "tensorrt", "raise ImportError('libnvinfer.so.11: cannot open shared object file')\n")
    plant(site, "tensorrt_rtx", "print('answer: {}')\nimport os\nos._exit(7)\n")
    plant(site, "pycuda.driver", "raise ImportError('libcuda.so.1: cannot open shared object file')\n")
    plant_distribution(site, "pycuda", "2026.1")
    told = lctr("doctor", "--json")
    assert told.exit_code == 0, told.output
    found = named(told)
    assert "killed by SIGABRT" in found["torch"]["found"]
    assert "ends the process with status 0" in found["ONNX Runtime"]["found"]
    assert "libnvinfer.so.11: cannot open" in found["TensorRT"]["found"]
    assert "status 7" in found["TensorRT-RTX"]["found"]
    assert "libcuda.so.1" in found["CUDA in Python"]["found"]
    for name in ("torch", "ONNX Runtime", "TensorRT", "TensorRT-RTX", "CUDA in Python"):
        assert found[name]["state"] == "broken"
        assert found[name]["remedy"].startswith("pip install --force-reinstall ")
    assert found["backend onnxruntime"]["state"] == "missing"
    assert found["backend onnxruntime"]["remedy"] == "repair that, above"


def test_an_import_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SECONDS", 0.5)
    assert probe.probed("import time\ntime.sleep(60)\nanswer = {}").problem == "does not load within 0.5 s"


def test_stubs_and_bindings_are_no_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if "-packages" not in p)])
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").write_text("class Builder: ...\n")
    plant_distribution(tmp_path, "tensorrt-stubs", "10.13")
    plant_distribution(tmp_path, "tensorrt-cu13-bindings", "11.4")
    found = runtimes.tensorrt()
    assert (found.state, found.remedy) == ("missing", "pip install 'lctr[tensorrt]'")
    assert found.found == "not installed; tensorrt-cu13-bindings, tensorrt-stubs without its libraries"
    (tmp_path / "tensorrt" / "__init__.py").write_text("__version__ = '11.5'\n")
    assert runtimes.tensorrt() == Finding("TensorRT", "11.5")


def test_pycuda_comes_before_cuda_bindings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if "-packages" not in p)])
    assert runtimes.cuda().state == "missing"
    plant(tmp_path, "cuda.bindings.runtime", "")
    plant_distribution(tmp_path, "cuda-bindings", "13.5")
    assert runtimes.cuda().found == "cuda-bindings 13.5; pycuda would come first"
    plant(tmp_path, "pycuda.driver", "")
    plant_distribution(tmp_path, "pycuda", "2026.1")
    assert runtimes.cuda() == Finding("CUDA in Python", "pycuda 2026.1")


def test_gpus_are_held_against_what_each_flavour_runs_on(site: Path) -> None:
    plant_gpus(
        site,
        "NVIDIA H100 80GB HBM3, 9.0, 81559, 580.65",
        "NVIDIA GeForce RTX 4090, 8.9, 24564, 580.65",
        "Tesla V100-SXM2-16GB, 7.0, 16384, 580.65",
        "NVIDIA GB10, 12.1, [N/A], 580.65",
    )
    found = {finding.name: finding for finding in hardware()}
    assert found["GPU 0"].found == "NVIDIA H100 80GB HBM3, SM 9.0, 80 GiB; for TensorRT, not for TensorRT-RTX"
    assert found["GPU 1"].found.endswith("SM 8.9, 24 GiB; for TensorRT and TensorRT-RTX")
    assert found["GPU 2"].state == "note"
    assert "too old for TensorRT" in found["GPU 2"].found
    assert found["GPU 3"].found == "NVIDIA GB10, SM 12.1; for TensorRT and TensorRT-RTX"
    assert found["driver"].found == "580.65, CUDA up to 13.0"
    assert found["C++ compiler"].state == found["nvcc"].state == "note"
    assert found["C++ compiler"].remedy


def test_without_a_driver_that_is_said(site: Path) -> None:
    found = {finding.name: finding for finding in hardware()}
    assert found["GPU"].state == "note"
    assert "driver" not in found
    assert found["CPU"].found
    assert found["memory"].found.endswith("GiB")
    assert "GiB free in" in found["disk"].found


def test_extras_lack_what_is_absent_or_too_old(site: Path) -> None:
    plant_distribution(
        site,
        "lctr",
        "9",
        "click>=8.2",
        'mill>=2.8; extra == "compile"',
        'grain>=1.10; extra == "compile"',
        'sieve; extra == "compile"',
        'lctr[compile]; extra == "train"',
        'oven>=2; extra == "train"',
        'salt; extra == "rtx"',
        'lctr[compile,train]; extra == "dev"',
    )
    plant_distribution(site, "mill", "2.13.0+cpu")
    plant_distribution(site, "grain", "1.9")
    plant_distribution(site, "salt", "0")
    assert extras() == (
        Finding("extra compile", "lacks grain, sieve", "missing", "pip install 'lctr[compile]'"),
        Finding("extra train", "lacks grain, sieve, oven", "missing", "pip install 'lctr[train]'"),
        Finding("extra rtx", "installed"),
    )


def test_it_loads_nothing_that_could_break_it(site: Path) -> None:
    quick(site)
    program = "import sys; from cli import main; main(['doctor'], standalone_mode=False); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    *table, modules = done.stdout.splitlines()
    loaded = {"torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "pynvml"} & set(modules.split())
    assert not loaded
    text = "\n".join(table)
    assert "9.1+cu130 for CUDA 13.0, which works" in text
    assert "9.2 with CPU; no CUDA provider" in text


def test_a_purpose_that_cannot_work_exits_with_1(site: Path) -> None:
    quick(site)
    for module in ("tensorrt", "tensorrt_rtx", "torch"):
        plant(site, module, "raise RuntimeError('half an installation')\n")
    (site / "onnxruntime.py").write_text("raise RuntimeError('half an installation')\n")
    told = lctr("doctor", "--for", "benchmark")
    assert told.exit_code == 1
    assert "backend onnxruntime" in told.stdout
    assert told.stderr == (
        "Error: nothing can be benchmarked here, for no backend runs (ONNX Runtime: does not load: RuntimeError: half "
        "an installation): pip install --force-reinstall onnxruntime.\n"
    )
    told = lctr("doctor", "--for", "build", "--json")
    assert told.exit_code == 1
    assert not json.loads(told.stdout)["backends"]["tensorrt-rtx"]["build"]
    assert "pip install --force-reinstall tensorrt-rtx-cu13." in told.stderr
    unknown = lctr("doctor", "--for", "sale")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "unknown --for 'sale': choose one of benchmark, build, train." in unknown.stderr


ABLE, UNABLE = Availability(True, True), Availability(False, False, "not here.")


@pytest.mark.parametrize(
    ("purpose", "backends", "state", "complaint"),
    [
        ("benchmark", {"onnxruntime": ABLE}, "missing", None),
        ("build", {"onnxruntime": ABLE, "tensorrt": ABLE}, "missing", None),
        ("build", {"onnxruntime": ABLE, "tensorrt-rtx": UNABLE}, "missing", "no TensorRT engine can be built here"),
        ("train", {}, "ok", None),
        ("train", {}, "missing", "nothing can be trained here"),
    ],
)
def test_purposes(purpose: str, backends: dict[str, Availability], state: str, complaint: str | None) -> None:
    names = ("torch", "ONNX Runtime", "TensorRT-RTX", "extra train")
    diagnosis = Diagnosis(tuple(Finding(name, "lies there", state, "fetch it") for name in names), backends)
    if complaint is None:
        require(diagnosis, purpose)
        return
    with pytest.raises(BackendUnavailable, match=complaint) as caught:
        require(diagnosis, purpose)
    assert str(caught.value).endswith("fetch it.")
