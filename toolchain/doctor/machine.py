"""The hardware, its driver, and what compiles: read from the system, nothing of Python is imported for it."""

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from engines.tensorrt_rtx import CAPABILITIES
from toolchain.artifacts import machine
from toolchain.doctor.finding import Finding

TENSORRT_LEAST = (7, 5)
"""Compute capability from which TensorRT 10.5 and later run (release notes of 10.5: "Volta support removed")."""
ROOM = 8 * 2**30
"""Bytes that torch, TensorRT and a deployment fill, with CUDA's libraries."""
COMPILERS = {"debian": "apt-get install g++", "fedora": "dnf install gcc-c++", "arch": "pacman -S gcc"}
"""Family of distributions -> what installs a C++ compiler."""
QUERY = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader,nounits"]
CUDA_VERSION = re.compile(r"CUDA (?:UMD )?Version\s*:\s*([\d.]+)")


@dataclass(frozen=True)
class Gpu:
    """A line of `nvidia-smi`; memory in MiB, None where it is not told (memory shared with the CPU)."""

    name: str
    capability: tuple[int, ...]
    memory: int | None
    driver: str


def hardware() -> tuple[Finding, ...]:
    """CPU, memory, disk, GPUs, driver and compilers."""
    return (_cpu(), _memory(), _disk(), *_gpu_findings(gpus()), *_compilers())


def gpus() -> tuple[Gpu, ...]:
    """Every GPU that `nvidia-smi` lists; none where it fails."""
    return tuple(_gpu(line) for line in _answer(QUERY).splitlines() if line.count(",") >= 3)


def _gpu(line: str) -> Gpu:
    name, capability, memory, driver = (cell.strip() for cell in line.rsplit(",", 3))
    digits = tuple(int(part) for part in re.findall(r"\d+", capability))
    return Gpu(name, digits, int(memory) if memory.isdigit() else None, driver)


def _gpu_findings(found: tuple[Gpu, ...]) -> tuple[Finding, ...]:
    if not found:
        remedy = "NVIDIA's driver, where there is one"
        return (Finding("GPU", "none that nvidia-smi sees: engines are built, not run", "note", remedy),)
    version = CUDA_VERSION.search(_answer(["nvidia-smi"]))
    cuda = f"CUDA up to {version[1]}" if version else "CUDA version not told"
    listed = tuple(_supported(index, gpu) for index, gpu in enumerate(found))
    return (*listed, Finding("driver", f"{found[0].driver}, {cuda}"))


def _supported(index: int, gpu: Gpu) -> Finding:
    capability = ".".join(map(str, gpu.capability))
    memory = f", {gpu.memory / 1024:.0f} GiB" if gpu.memory else ""
    runs = {"TensorRT": gpu.capability >= TENSORRT_LEAST, "TensorRT-RTX": capability in CAPABILITIES}
    words = f"{gpu.name}, SM {capability}{memory}"
    able = [flavour for flavour, does in runs.items() if does]
    if not able:
        return Finding(f"GPU {index}", f"{words}; too old for TensorRT from 10.5 on", "note", "run ONNX files on it")
    unable = ", ".join(f"not for {flavour}" for flavour, does in runs.items() if not does)
    return Finding(f"GPU {index}", f"{words}; for {' and '.join(able)}{', ' if unable else ''}{unable}")


def _cpu() -> Finding:
    known = machine()
    flags = set(_text(Path("/proc/cpuinfo")).split())
    vnni = not flags.isdisjoint({"avx512_vnni", "avx_vnni"})
    amx = "amx_int8" in flags
    words = (
        f"{known['cpu']}, {known['cores']} cores usable; {'VNNI' if vnni else 'no VNNI'}, {'AMX' if amx else 'no AMX'}"
    )
    return Finding("CPU", words) if vnni else Finding("CPU", f"{words}: INT8 gains little on it", "note")


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Finding("memory", f"{total / 2**30:.1f} GiB")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    words = f"{free / 2**30:.1f} GiB free in {Path.cwd()}"
    if free >= ROOM:
        return Finding("disk", words)
    return Finding("disk", words, "note", f"{ROOM / 2**30:.0f} GiB hold every extra and a deployment")


def _compilers() -> tuple[Finding, ...]:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    nvcc = shutil.which("nvcc")
    need = "none; needed to install pycuda alone"
    return (
        Finding("C++ compiler", compiler) if compiler else Finding("C++ compiler", need, "note", _compiler_command()),
        Finding("nvcc", nvcc) if nvcc else Finding("nvcc", need, "note", "install NVIDIA's CUDA toolkit"),
    )


def _compiler_command() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    families = f"{release.get('ID', '')} {release.get('ID_LIKE', '')}".split()
    return next((COMPILERS[family] for family in families if family in COMPILERS), "install a C++ compiler")


def _answer(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
