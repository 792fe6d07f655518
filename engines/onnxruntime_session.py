"""An open ONNX Runtime session: the provider that it runs on and no other, what it is fed, how its calls are timed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engines.backend import PLAIN, Feeds, Input
from engines.feeds import check_arrays, closed
from engines.host_timing import timed_on_host
from engines.onnx_graph import graph_from_onnx
from engines.products import QUANTIZATION_OPS
from engines.timing import TimingOptions, Timings
from toolchain.errors import BackendError, BackendUnavailable, LctrError, UsageError, first_line

CPU, CUDA, TENSORRT = "cpu", "cuda", "tensorrt"
PROVIDERS = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider", TENSORRT: "TensorrtExecutionProvider"}
INSTALL = "install onnxruntime-gpu in place of onnxruntime"
LIBRARIES = {CUDA: "CUDA and cuDNN", TENSORRT: "CUDA, cuDNN and TensorRT"}
"""What a provider loads when it starts, in the versions that the package was built for."""
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def lacking(provider: str) -> str:
    """Why the installed package cannot run on a provider, as a sentence; empty where it has it."""
    if PROVIDERS[provider] in ort.get_available_providers():
        return ""
    return f"the installed onnxruntime {ort.__version__} has no {PROVIDERS[provider]}: {INSTALL}."


def session_from_model(path: Path, settings: ort.SessionOptions, provider: str = CPU) -> ort.InferenceSession:
    """Load a model for one provider.

    ONNX Runtime puts nodes that its CUDA provider has no kernel for, such as those that compute shapes, on the CPU.
    TensorRT's takes a whole graph or none: there any other node is refused.

    Raises:
        BackendUnavailable: the installed package or this machine lacks the provider.
        BackendError: the model was refused.
    """
    if reason := lacking(provider):
        raise BackendUnavailable(f"{path} cannot run on '{provider}': {reason}")
    if provider == TENSORRT:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    chosen = [(PROVIDERS[provider], _provider_options(path, provider))]
    try:
        session = ort.InferenceSession(str(path), settings, providers=chosen, enable_fallback=False)
    except Exception as error:  # ONNX Runtime's exceptions have no common base below Exception.
        remedy = "export it again" if provider == CPU else f"check {LIBRARIES[provider]}, or export it again"
        raise BackendError(f"ONNX Runtime refuses {path} ({first_line(error)}): {remedy}.") from error
    require_provider(session, path, provider)
    return session


def require_provider(session: ort.InferenceSession, path: Path, provider: str) -> None:
    """Refuse a session that ended up on another provider: ONNX Runtime merely logs that one could not be started.

    Raises:
        BackendUnavailable: it did.
    """
    running = session.get_providers()[0]
    if running != PROVIDERS[provider]:
        raise BackendUnavailable(
            f"{path} would run on {running}, for ONNX Runtime could not start {PROVIDERS[provider]}: check the GPU's "
            f"driver, and {LIBRARIES[provider]} in the versions that onnxruntime {ort.__version__} asks for."
        )


def sample_of(session: ort.InferenceSession) -> dict[str, NDArray[Any]]:
    """Noise for one batch of one item; dynamic dimensions become 1. Noise, for a zero batch may take shortcuts."""
    random = np.random.default_rng(0)
    feeds = {}
    for taken in map(_input, session.get_inputs()):
        shape = [size if isinstance(size, int) else 1 for size in taken.shape]
        feeds[taken.name] = random.standard_normal(shape).astype(taken.dtype)
    return feeds


class OnnxRuntimeSession:
    """An open model; see `engines.backend.Session`."""

    def __init__(
        self, session: ort.InferenceSession, metadata: Mapping[str, str], source: Path, provider: str = CPU
    ) -> None:
        self._session: ort.InferenceSession | None = session
        self._source = source
        self._provider = provider
        self.taken = tuple(_input(spec) for spec in session.get_inputs())
        self.metadata = metadata
        self.inputs = tuple(taken.name for taken in self.taken)
        self.outputs = tuple(output.name for output in session.get_outputs())

    def close(self) -> None:
        """Let go of the model and its memory."""
        self._session = None

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Compute every output for one batch; BackendError for feeds that the model does not take."""
        session = self._checked(feeds)
        with self._translated():
            return dict(zip(self.outputs, session.run(list(self.outputs), dict(feeds)), strict=True))

    def time(self, feeds: Feeds, iterations: int, options: TimingOptions = PLAIN) -> Timings:
        """Wall time of each call: on the CPU host arrays in and out, on a GPU through buffers there that are reused."""
        session = self._checked(feeds)
        outputs, plain = list(self.outputs), dict(feeds)
        threads = session.get_session_options().intra_op_num_threads
        facts: dict[str, Any] = {"provider": self._provider, "threads": threads}
        with self._translated():
            if self._provider == CPU:
                session.run(outputs, plain)
                run, who = session.run, "ONNX Runtime's CPU provider"
                return timed_on_host(lambda: run(outputs, plain), iterations, options, who, facts=facts)
            _refuse(options, self._provider)
            call = BoundCall(session, outputs, plain, transfers=options.transfers)
            call()
            facts["transfers"] = options.transfers
            return timed_on_host(call, iterations, PLAIN, "", name="perf_counter, GPU synchronized", facts=facts)

    def _checked(self, feeds: Feeds) -> ort.InferenceSession:
        if self._session is None:
            raise closed(str(self._source))
        check_arrays(feeds, self.taken, str(self._source))
        return self._session

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except LctrError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base below Exception.
            cause = first_line(error)
            raise BackendError(f"{self._source} failed in ONNX Runtime ({cause}): check the feeds.") from error


class BoundCall:
    """One batch whose inputs and outputs stay bound to the same buffers on the GPU.

    Args:
        session: on the CUDA or TensorRT provider.
        outputs: their names.
        feeds: the batch.
        transfers: copy inputs to the GPU and outputs from it in every call.
        device: where the buffers are, as ONNX Runtime calls it.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        outputs: list[str],
        feeds: dict[str, NDArray[Any]],
        *,
        transfers: bool,
        device: str = CUDA,
    ) -> None:
        self.session, self.transfers = session, transfers
        self.feeds = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        self.binding = session.io_binding()
        self.inputs = {n: ort.OrtValue.ortvalue_from_numpy(array, device, 0) for n, array in self.feeds.items()}
        self.outputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type(list(answer.shape), answer.dtype.type, device, 0)
            for name, answer in zip(outputs, session.run(outputs, feeds), strict=True)
        }
        for name, value in self.inputs.items():
            self.binding.bind_ortvalue_input(name, value)
        for name, value in self.outputs.items():
            self.binding.bind_ortvalue_output(name, value)

    def __call__(self) -> None:
        """Run; when it returns, the GPU is done."""
        if self.transfers:
            for name, value in self.inputs.items():
                value.update_inplace(self.feeds[name])
        self.session.run_with_iobinding(self.binding)
        if self.transfers:
            for value in self.outputs.values():
                value.numpy()


def _refuse(options: TimingOptions, provider: str) -> None:
    """Refuse what ONNX Runtime decides itself, when a session is made or not at all."""
    asked = {
        "a captured CUDA graph": bool(options.cuda_graph),
        "spin wait": options.spin_wait,
        f"{options.streams} streams": options.streams > 1,
        "a cold cache": options.cold_cache,
    }
    if wanted := [name for name, given in asked.items() if given]:
        raise UsageError(f"onnxruntime:{provider} cannot be timed with {wanted[0]}: leave that option out.")


def _provider_options(path: Path, provider: str) -> dict[str, str]:
    """TensorRT computes in FP32 unless it is told that a file holds FP16 types or Q/DQ."""
    if provider != TENSORRT:
        return {}
    graph = graph_from_onnx(path)
    return {
        "trt_fp16_enable": str("fp16" in graph.types.values()),
        "trt_int8_enable": str(any(node.op in QUANTIZATION_OPS for node in graph.nodes)),
    }


def _input(spec: ort.NodeArg) -> Input:
    if spec.type not in TYPES:
        raise BackendError(f"Input '{spec.name}' is a {spec.type}, which cannot be fed: export it in float32.")
    shape = tuple(size if isinstance(size, int) else str(size or "?") for size in spec.shape)
    return Input(spec.name, np.dtype(TYPES[spec.type]), shape)
