"""ONNX Runtime on the CPU: builds an optimized model file, runs ONNX files and such engines, and says what ran."""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engines.backend import PLAIN, Availability, BuildOptions, Feeds, check_feeds, refuse_options
from engines.onnx_graph import graph_from_onnx
from engines.products import Product, products_of
from engines.ran_products import Kernel
from engines.sealing import KIND, opened, sealed, session_metadata
from engines.timing import TimingOptions, Timings, refuse_gpu_options
from toolchain.artifacts import Artifact, load, sidecar_of, writing
from toolchain.errors import BackendError
from toolchain.progress import Progress, silent

FATAL = 4
"""ONNX Runtime's log level at which only crashes are printed: what matters is raised, the rest is noise on stderr."""
KERNEL_EVENT = "_kernel_time"
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


class OnnxRuntimeSession:
    """An open model; see `engines.backend.Session`."""

    def __init__(self, session: ort.InferenceSession, metadata: Mapping[str, str], source: Path) -> None:
        self._session = session
        self._source = source
        self.metadata = metadata
        self.inputs = tuple(i.name for i in session.get_inputs())
        self.outputs = tuple(o.name for o in session.get_outputs())

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Compute every output for one batch; BackendError for feeds that the model does not take."""
        check_feeds(feeds, self.inputs)
        self._check_shapes(feeds)
        try:
            answers = self._session.run(list(self.outputs), dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions have no common base below Exception.
            cause = _first_line(error)
            raise BackendError(f"{self._source} failed in ONNX Runtime ({cause}): check the feeds.") from error
        return dict(zip(self.outputs, answers, strict=True))

    def time(self, feeds: Feeds, iterations: int, options: TimingOptions = PLAIN) -> Timings:
        """Wall time of each call, host arrays in and out."""
        refuse_gpu_options(options, "ONNX Runtime's CPU provider")
        self.run(feeds)
        outputs, plain = list(self.outputs), dict(feeds)
        samples = []
        for _ in range(iterations):
            start = time.perf_counter_ns()
            self._session.run(outputs, plain)
            samples.append((time.perf_counter_ns() - start) / 1e6)
        return Timings(tuple(samples), "perf_counter")

    def _check_shapes(self, feeds: Feeds) -> None:
        for spec in self._session.get_inputs():
            array = feeds[spec.name]
            wanted = tuple(d if isinstance(d, int) else -1 for d in spec.shape)
            fits = array.ndim == len(wanted) and all(w in (-1, d) for w, d in zip(wanted, array.shape, strict=True))
            if not fits or array.dtype != TYPES.get(spec.type, array.dtype):
                raise BackendError(
                    f"Input '{spec.name}' of {self._source} is {array.dtype}{list(array.shape)}: "
                    f"feed {spec.type.removeprefix('tensor(').removesuffix(')')}{list(spec.shape)}."
                )


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """ONNX Runtime's CPU provider; see `engines.backend.Backend`.

    Attributes:
        threads: of one call; None: every core this process may use.
    """

    threads: int | None = None

    @property
    def name(self) -> str:
        """`onnxruntime`."""
        return "onnxruntime"

    def availability(self) -> Availability:
        """Everywhere this module imports."""
        return Availability(build=True, run=True)

    def build(self, model: Path, output: Path, options: BuildOptions, progress: Progress = silent) -> Artifact:
        """Optimize offline. The file fits every CPU: what depends on this one is left to `open`."""
        refuse_options(options, "ONNX Runtime", "it builds for any CPU and any shape; leave it out")
        products = products_of(graph_from_onnx(model))
        with writing(output) as temporary:
            settings = self._settings()
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            settings.optimized_model_filepath = str(temporary)
            _session(model, settings)
        progress(1, 1)
        return sealed(model, output, self.name, options, {"products": [asdict(p) for p in products]})

    @contextmanager
    def open(self, engine: Path) -> Iterator[OnnxRuntimeSession]:
        """Open an engine, or an ONNX file: one with a sidecar must match it, one without is opened as it is."""
        facts = _artifact_metadata(engine, self.name)
        session = _session(engine, self._settings())
        props = dict(session.get_modelmeta().custom_metadata_map)
        yield OnnxRuntimeSession(session, {**props, **session_metadata(facts)}, engine)

    def kernels_run(self, path: Path) -> tuple[Kernel, ...]:
        """Run one batch of one item (dynamic dimensions become 1) and report every node that ran, in order."""
        with tempfile.TemporaryDirectory() as folder:
            settings = self._settings()
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder) / "profile")
            session = _session(path, settings)
            feeds = {i.name: _sample(i) for i in session.get_inputs()}
            OnnxRuntimeSession(session, {}, path).run(feeds)
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


def _session(path: Path, settings: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base below Exception.
        raise BackendError(f"ONNX Runtime refuses {path} ({_first_line(error)}): export it again.") from error


def _sample(spec: ort.NodeArg) -> NDArray[Any]:
    shape = [d if isinstance(d, int) else 1 for d in spec.shape]
    # Noise, not zeros: a zero batch may take shortcuts.
    return np.random.default_rng(0).standard_normal(shape).astype(TYPES[spec.type])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
