"""Observation: images through ONNX Runtime, one batch at a time, into one histogram and one range per tensor.

The graph is an observer: the float model with every tensor to be watched among its outputs. No activation outlives its
batch. A range file names the graph that it belongs to by hash and is refused for another.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

from calib.histograms import Histogram, histogram_of, merged
from calib.thresholds import Threshold, relative_error, threshold_of
from toolchain import artifacts
from toolchain.errors import ArtifactError, BackendError, DataError, ModelError, UsageError, first_line
from toolchain.progress import Progress, silent

SCHEMA_VERSION = 3
READABLE = (1, 2, SCHEMA_VERSION)
"""Version 1 knew no equalization, so its files stand for graphs as they were; version 2 knew int8 alone."""
FLOAT_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
RUNTIME_ERRORS = tuple(
    error for error in vars(runtime_errors).values() if isinstance(error, type) and issubclass(error, Exception)
)
"""ONNX Runtime's exceptions have no common base but Exception."""

KNOWN = "known"
"""Method of a range that no image was asked for."""


@dataclass(frozen=True)
class Observed:
    """What the images did to the tensors.

    Attributes:
        histograms: tensor name -> histogram of |x|.
        images: how many were run.
    """

    histograms: Mapping[str, Histogram]
    images: int


@dataclass(frozen=True)
class TensorRange:
    """The range of one tensor.

    Attributes:
        amax: the magnitude that becomes level 127.
        method: the calibration method that chose it, or `known`.
        error: mean squared quantization error over mean square, under the histogram.
        minimum: least value observed.
        maximum: largest value observed.
    """

    amax: float
    method: str
    error: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Ranges:
    """The ranges of one graph.

    Attributes:
        graph: hash of the float graph that they belong to.
        method: the calibration method that was asked for.
        images: how many images they were observed on.
        tensors: tensor name -> range.
        exponents: activation -> exponent of two for each channel, by which the graph was equalized before its tensors
            were observed; empty where it was not.
        levels: activation or weight tensor -> least and largest integer that it is quantized to, where they are not
            int8's.
    """

    graph: str
    method: str
    images: int
    tensors: Mapping[str, TensorRange]
    exponents: Mapping[str, Sequence[int]] = field(default_factory=dict)
    levels: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def amax(self) -> dict[str, float]:
        """Tensor name -> amax: what Q/DQ insertion needs."""
        return {name: r.amax for name, r in self.tensors.items()}


def collect(
    observer: Path,
    tensors: Sequence[str],
    batches: Iterable[NDArray[np.float32]],
    *,
    input_name: str = "image",
    total: int = 0,
    progress: Progress = silent,
) -> Observed:
    """Run every batch and keep the histograms of `tensors`.

    Args:
        observer: as for `observations`.
        tensors: likewise.
        batches: likewise.
        input_name: likewise.
        total: images to come, for the progress; 0 where unknown.
        progress: called after each batch, in images.

    Raises:
        LctrError: as `observations`.
        ModelError: a tensor holds NaN or infinity.
    """
    histograms: dict[str, Histogram] = {}
    images = 0
    for count, values in observations(observer, tensors, batches, input_name=input_name):
        for name in tuple(values):
            # Popped: no activation is alive when the next batch runs.
            seen = histogram_of(name, values.pop(name))
            histograms[name] = merged(histograms[name], seen) if name in histograms else seen
        images += count
        progress(images, max(total, images), f"{len(histograms)} tensors")
    return Observed(histograms, images)


def observations(
    observer: Path, tensors: Sequence[str], batches: Iterable[NDArray[np.float32]], *, input_name: str = "image"
) -> Iterator[tuple[int, dict[str, NDArray[np.floating]]]]:
    """What each batch does to `tensors`; run when it is asked for.

    Args:
        observer: ONNX file with `tensors` among its outputs (the model's input may be watched too).
        tensors: names to watch, at least one.
        batches: (B, ...) arrays, the first axis counts images; consumed once. Where the graph fixes its batch they are
            regrouped, and the images short of a whole batch are left out.
        input_name: the graph input that takes a batch.

    Yields:
        how many images the batch holds, and tensor name -> values, each once; the caller's to empty.

    Raises:
        BackendError: ONNX Runtime refused the model or a batch.
        DataError: no image came, or fewer than a batch of the graph takes.
        ModelError: the model has no such input or output.
        UsageError: nothing to watch.
    """
    if not tensors:
        raise UsageError(f"No tensor to observe in {observer.name}: the placement is empty; widen it.")
    session, fed = _session(observer, tensors, input_name)
    watched = tuple(dict.fromkeys(tensors))
    came = False
    for batch in regrouped(batches, fed.batch) if fed.batch else batches:
        feed = np.ascontiguousarray(batch, fed.dtype)
        came = True
        yield len(feed), _values(session, observer, watched, input_name, feed)
    if not came:
        short = f" or fewer than the {fed.batch} that a batch of the model takes" if fed.batch > 1 else ""
        raise DataError(f"No calibration image came{short}: name a folder that holds enough.")


def regrouped(batches: Iterable[NDArray[np.float32]], size: int) -> Iterator[NDArray[np.float32]]:
    """The same images in batches of `size`, for a graph that takes no other; those short of a whole batch are dropped.

    Padding them would count images twice.
    """
    waiting: list[NDArray[np.float32]] = []
    for batch in batches:
        waiting.extend(batch)
        while len(waiting) >= size:
            yield np.stack(waiting[:size])
            del waiting[:size]


def ranges_from_histograms(
    observed: Observed,
    method: str,
    *,
    graph: str,
    known: Mapping[str, float] | None = None,
    exponents: Mapping[str, Sequence[int]] | None = None,
) -> Ranges:
    """Choose the range of every tensor.

    Args:
        observed: histograms.
        method: `auto` or a key of `thresholds.METHODS`.
        graph: hash of the float graph.
        known: tensor -> amax that follows from something else than images, as an input's does from its normalization;
            the method has no say in it.
        exponents: by which the float graph was equalized before it was observed.

    Raises:
        UsageError: no such method.
    """
    tensors = {}
    for name, histogram in observed.histograms.items():
        chosen = _given(histogram, known[name]) if known and name in known else threshold_of(histogram, method)
        tensors[name] = TensorRange(chosen.amax, chosen.method, chosen.error, histogram.minimum, histogram.maximum)
    return Ranges(graph, method, observed.images, tensors, exponents or {})


def save(ranges: Ranges, path: Path) -> None:
    """Write a range file: JSON, one tensor a line, whole or not at all.

    Raises:
        ArtifactError: the place cannot be written to.
    """
    head = {"schema": SCHEMA_VERSION, "graph": ranges.graph, "method": ranges.method, "images": ranges.images}
    # repr of a float is read back to the same bits, so a saved range gives the same engine.
    tensors = {name: asdict(r) for name, r in ranges.tensors.items()}
    fields = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
    parts = {"exponents": ranges.exponents, "levels": ranges.levels, "tensors": tensors}
    text = f"{{\n{fields}" + ",\n".join(f' "{key}": {_by_line(part)}' for key, part in parts.items()) + "\n}\n"
    with artifacts.writing(path) as temporary:
        temporary.write_text(text)


def load(path: Path, *, graph: str) -> Ranges:
    """Read a range file of the graph with this hash.

    Raises:
        ArtifactError: no range file, or one of another graph.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if record.pop("schema") not in READABLE:
            raise ArtifactError(f"{path} has a schema this version does not know: compute the ranges again.")
        tensors = {name: _tensor_range(**r) for name, r in record.pop("tensors").items()}
        exponents = {name: tuple(map(int, e)) for name, e in record.pop("exponents", {}).items()}
        levels = {name: (int(least), int(largest)) for name, (least, largest) in record.pop("levels", {}).items()}
        ranges = Ranges(tensors=tensors, exponents=exponents, levels=levels, **record)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is no range file of ours: compute the ranges again.") from error
    if ranges.graph != graph:
        raise ArtifactError(
            f"{path} was computed for another graph (hash {ranges.graph[:12]}, this one has {graph[:12]}): weights or "
            "structure differ, so its ranges do not hold here; compute them again."
        )
    return ranges


def _by_line(entries: Mapping[str, object]) -> str:
    """A JSON object with one entry a line."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items())
    return f"{{\n{lines}\n }}" if lines else "{}"


def _given(histogram: Histogram, amax: float) -> Threshold:
    return Threshold(amax, KNOWN, relative_error(histogram, amax))


def _tensor_range(method: str, **numbers: float) -> TensorRange:
    return TensorRange(method=method, **{key: float(value) for key, value in numbers.items()})


@dataclass(frozen=True)
class _Fed:
    """What the input of a graph takes: a float type, and a batch size where that is fixed (0 where not)."""

    dtype: str
    batch: int


def _session(observer: Path, tensors: Sequence[str], input_name: str) -> tuple[onnxruntime.InferenceSession, _Fed]:
    """A session, checked to have its one input and every tensor to watch, and what that input takes."""
    options = onnxruntime.SessionOptions()
    # The runtime's idle threads would otherwise spin on the cores that the histograms need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(observer), options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise BackendError(
            f"ONNX Runtime cannot load {observer} ({first_line(error)}): export the model again."
        ) from error
    inputs = {i.name: i for i in session.get_inputs()}
    if list(inputs) != [input_name]:
        raise ModelError(f"{observer} takes the inputs {list(inputs)}, not ['{input_name}']: name its only input.")
    fed = inputs[input_name]
    if fed.type not in FLOAT_TYPES:
        raise ModelError(f"Input '{input_name}' of {observer} is {fed.type}, not float: export it with a float input.")
    missing = sorted({*tensors} - {o.name for o in session.get_outputs()} - {input_name})
    if missing:
        raise ModelError(f"{observer} has no output '{missing[0]}' to observe: make the observer from the placement.")
    batch = fed.shape[0] if fed.shape and isinstance(fed.shape[0], int) else 0
    return session, _Fed(FLOAT_TYPES[fed.type], batch)


def _values(
    session: onnxruntime.InferenceSession,
    observer: Path,
    watched: Sequence[str],
    input_name: str,
    feed: NDArray[np.floating],
) -> dict[str, NDArray[np.floating]]:
    """One batch through the graph; what is returned is alone in holding the activations."""
    fetched = [name for name in watched if name != input_name]
    try:
        found = dict(zip(fetched, session.run(fetched, {input_name: feed}) if fetched else [], strict=True))
    except RUNTIME_ERRORS as error:
        raise BackendError(
            f"ONNX Runtime failed on a batch of shape {feed.shape} in {observer.name} ({first_line(error)}): "
            f"check the shape of input '{input_name}'."
        ) from error
    return {name: feed if name == input_name else found[name] for name in watched}
