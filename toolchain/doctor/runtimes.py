"""TensorRT, CUDA, torch and ONNX Runtime: which are installed, and which of those load."""

from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, distributions, version

from engines.backend import Availability
from engines.registry import BACKENDS
from toolchain.doctor.finding import Finding, State
from toolchain.doctor.probe import probed

TORCH = """import torch
answer = {"version": torch.__version__, "cuda": torch.version.cuda, "works": torch.cuda.is_available()}"""
ONNXRUNTIME = """import onnxruntime
answer = {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}"""
BACKEND = """from dataclasses import asdict
from engines.registry import backend
answer = asdict(backend({name!r}).availability())"""
PROVIDER = "ExecutionProvider"
UNUSABLE = Availability(build=False, run=False, reason="its runtime does not load: repair that, above.")
"""Of a backend whose runtime is broken."""


def installed(module: str) -> bool:
    """Whether there is code to import: a folder without `__init__.py`, such as that of stubs, is none.

    Nothing is imported, whatever else the name belongs to in this process.
    """
    spec = PathFinder.find_spec(module)
    return spec is not None and spec.origin is not None


def tensorrt() -> Finding:
    """TensorRT, and what calls itself so and is none."""
    if installed("tensorrt"):
        return _loaded("TensorRT", "tensorrt", "'lctr[tensorrt]'")
    parts = sorted(
        name.replace("_", "-")
        for distribution in distributions()
        if (name := distribution.metadata["Name"]) and name.startswith("tensorrt") and "rtx" not in name
    )
    rest = f"; {', '.join(parts)} without its libraries" if parts else ""
    return Finding("TensorRT", f"not installed{rest}", "missing", "pip install 'lctr[tensorrt]'")


def tensorrt_rtx() -> Finding:
    """TensorRT-RTX."""
    if installed("tensorrt_rtx"):
        return _loaded("TensorRT-RTX", "tensorrt_rtx", "tensorrt-rtx-cu13")
    return Finding("TensorRT-RTX", "not installed", "missing", "pip install 'lctr[rtx]'")


def cuda() -> Finding:
    """What reaches the GPU from Python: pycuda where it is installed, NVIDIA's cuda-bindings otherwise."""
    if found := _version("pycuda"):
        probe = probed("import pycuda.driver\nanswer = {}")
        if not probe.problem:
            return Finding("CUDA in Python", f"pycuda {found}")
        return Finding("CUDA in Python", f"pycuda {found} does not load: {probe.problem}", "broken", _again("pycuda"))
    if found := _version("cuda-bindings"):
        probe = probed("from cuda.bindings import runtime\nanswer = {}")
        if not probe.problem:
            return Finding("CUDA in Python", f"cuda-bindings {found}; pycuda would come first")
        words = f"cuda-bindings {found} does not load: {probe.problem}"
        return Finding("CUDA in Python", words, "broken", _again("cuda-bindings"))
    return Finding("CUDA in Python", "neither pycuda nor cuda-bindings", "missing", "pip install 'lctr[rtx]'")


def torch() -> Finding:
    """Torch, and whether it computes on a GPU here."""
    if not installed("torch"):
        return Finding("torch", "not installed", "missing", "pip install 'lctr[compile]'")
    probe = probed(TORCH)
    if probe.problem:
        return Finding("torch", f"does not load: {probe.problem}", "broken", _again("torch"))
    facts = probe.answer
    build = f"for CUDA {facts['cuda']}" if facts["cuda"] else "for the CPU alone"
    gpu = "" if not facts["cuda"] else ", which works" if facts["works"] else ", which finds no GPU"
    return Finding("torch", f"{facts['version']} {build}{gpu}")


def onnxruntime() -> Finding:
    """ONNX Runtime and its providers."""
    probe = probed(ONNXRUNTIME)
    if probe.problem:
        return Finding("ONNX Runtime", f"does not load: {probe.problem}", "broken", _again("onnxruntime"))
    providers = [name.removesuffix(PROVIDER) for name in probe.answer["providers"]]
    missing = "" if "CUDA" in providers else "; no CUDA provider"
    return Finding("ONNX Runtime", f"{probe.answer['version']} with {', '.join(providers)}{missing}")


def backends() -> tuple[str, ...]:
    """The backends that run something outside this process's memory."""
    return tuple(name for name in BACKENDS if name != "memory")


def availability(name: str) -> Availability:
    """What a backend says of itself, where it can be imported."""
    probe = probed(BACKEND.format(name=name))
    return UNUSABLE if probe.problem else Availability(**probe.answer)


def backend_finding(name: str, can: Availability) -> Finding:
    """What a backend can do, in words."""
    verbs = {"builds": can.build, "runs": can.run}
    does = [verb for verb, able in verbs.items() if able]
    if len(does) == len(verbs):
        return Finding(f"backend {name}", "builds and runs")
    # Every reason is a cause, a colon, and what to do about it.
    cause, _, remedy = can.reason.rstrip(".").rpartition(": ")
    words = f"{does[0]} only" if does else "neither builds nor runs"
    state: State = "note" if does else "missing"
    return Finding(f"backend {name}", f"{words}: {cause}", state, remedy)


def _loaded(name: str, module: str, requirement: str) -> Finding:
    probe = probed(f"import {module}\nanswer = {{'version': {module}.__version__}}")
    if probe.problem:
        return Finding(name, f"does not load: {probe.problem}", "broken", _again(requirement))
    return Finding(name, str(probe.answer["version"]))


def _again(requirement: str) -> str:
    return f"pip install --force-reinstall {requirement}"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
