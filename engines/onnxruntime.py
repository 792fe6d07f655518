"""ONNX Runtime, on the provider that is asked for: builds optimized model files, opens them, and says what ran."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from engines.backend import Availability, BuildOptions, refuse_options
from engines.onnx_graph import graph_from_onnx
from engines.onnxruntime_session import (
    CPU,
    TENSORRT,
    OnnxRuntimeSession,
    lacking,
    sample_of,
    session_from_model,
)
from engines.products import Product, products_of
from engines.ran_products import Kernel
from engines.sealing import KIND, opened, sealed, session_metadata
from toolchain.artifacts import Artifact, gpu_description, load, sidecar_of, writing
from toolchain.errors import BackendError
from toolchain.progress import Progress, silent

FATAL = 4
"""ONNX Runtime's log level at which only crashes are printed: what matters is raised, the rest is noise on stderr."""
KERNEL_EVENT = "_kernel_time"


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """ONNX Runtime on one of its providers; see `engines.backend.Backend`.

    Attributes:
        threads: of one call; None: every core this process may use.
        provider: one of `engines.onnxruntime_session.PROVIDERS`.
    """

    threads: int | None = None
    provider: str = CPU

    @property
    def name(self) -> str:
        """`onnxruntime`; `onnxruntime:cuda` and `onnxruntime:tensorrt` for the other providers."""
        return "onnxruntime" if self.provider == CPU else f"onnxruntime:{self.provider}"

    def availability(self) -> Availability:
        """On the CPU everywhere; elsewhere where the package has the provider, and there is a GPU."""
        if self.provider == CPU:
            return Availability(build=True, run=True)
        reason = lacking(self.provider)
        if not reason and gpu_description() is None:
            reason = "this machine has no NVIDIA GPU that nvidia-smi can see: use onnxruntime, on the CPU."
        builds = self.provider != TENSORRT and not reason
        return Availability(builds, run=not reason, reason=reason or ("" if builds else self._builds_nothing()))

    def build(self, model: Path, output: Path, options: BuildOptions, progress: Progress = silent) -> Artifact:
        """Optimize offline. The CPU's file fits every CPU: what depends on this one is left to `open`."""
        refuse_options(options, "ONNX Runtime", "it optimizes files for no GPU in particular; leave it out")
        if self.provider == TENSORRT:
            raise BackendError(f"{model} is not built: {self._builds_nothing()}")
        products = products_of(graph_from_onnx(model))
        with writing(output) as temporary:
            settings = self._settings()
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            settings.optimized_model_filepath = str(temporary)
            session_from_model(model, settings, self.provider)
        progress(1, 1)
        return sealed(model, output, self.name, options, {"products": [asdict(p) for p in products]})

    @contextmanager
    def open(self, engine: Path) -> Iterator[OnnxRuntimeSession]:
        """Open an engine, or an ONNX file: one with a sidecar must match it, one without is opened as it is."""
        facts = _artifact_metadata(engine, self.name)
        inference = session_from_model(engine, self._settings(), self.provider)
        props = dict(inference.get_modelmeta().custom_metadata_map)
        session = OnnxRuntimeSession(inference, {**props, **session_metadata(facts)}, engine, self.provider)
        # This frame must not keep alive what the session lets go of.
        del inference
        try:
            yield session
        finally:
            session.close()

    def kernels_run(self, path: Path) -> tuple[Kernel, ...]:
        """Run one batch of one item (dynamic dimensions become 1) and report every node that ran, in order."""
        with tempfile.TemporaryDirectory() as folder:
            settings = self._settings()
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            session = session_from_model(path, settings, self.provider)
            OnnxRuntimeSession(session, {}, path, self.provider).run(sample_of(session))
            events = json.loads(Path(session.end_profiling()).read_text())
        return tuple(
            Kernel(
                name=event["name"].removesuffix(KERNEL_EVENT),
                op=event["args"]["op_name"],
                inputs=tuple(t for shapes in event["args"].get("input_type_shape", []) for t in shapes),
            )
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith(KERNEL_EVENT)
        )

    def _builds_nothing(self) -> str:
        return f"{self.name} makes its engine when it opens an ONNX file: name the file as FILE.onnx@{self.name}."

    def _settings(self) -> ort.SessionOptions:
        settings = ort.SessionOptions()
        settings.log_severity_level = FATAL
        settings.intra_op_num_threads = self.threads or len(os.sched_getaffinity(0))
        # "0" turns signed activations into unsigned ones when a model is loaded. Where the CPU has VNNI that computes
        # the same, and the product is ten times as fast (1.32, 20 products of the bundled model: 13.6 ms -> 1.0 ms).
        # Elsewhere the unsigned kernels add pairs in 16 bits and saturate: there INT8 stays signed.
        settings.add_session_config_entry("session.qdqisint8allowed", "0" if has_vnni() else "1")
        # Threads that keep spinning after a run take the cores from whatever is measured next.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        return settings


@cache
def has_vnni() -> bool:
    """The CPU multiplies unsigned by signed bytes into 32 bits; False where that is not known."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags)


def source_products(path: Path) -> tuple[Product, ...]:
    """The matrix products of the ONNX file that `path` is, or that the engine `path` was built from."""
    record = _artifact_metadata(path, "onnxruntime").get("products")
    if record is None:
        return products_of(graph_from_onnx(path))
    return tuple(Product(**{**p, "quantized": tuple(p["quantized"])}) for p in record)


def _artifact_metadata(path: Path, backend: str) -> Mapping[str, Any]:
    """Checked sidecar metadata; empty for an ONNX file that has none."""
    if path.suffix == ".onnx" and path.exists():
        if not sidecar_of(path).exists():
            return {}
        artifact = load(path)
        if artifact.kind != KIND:
            return artifact.metadata
    return opened(path, backend).metadata
