"""Parity: does an exported graph compute what its module computes? Asked at every export, through Polygraphy.

The error of an output is max |graph - module| / max |module|, over one batch of normal random images. Elements are not
divided one by one: a map is 0 in most places (ReLU), and next to 0 every rounding is a large relative error.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator, IterationResult, RunResults, SimpleCompareFunc
from polygraphy.logger import G_LOGGER
from torch import nn

from exporters.files import read_onnx
from exporters.torch_export import INPUT, device_of, evaluating
from toolchain.errors import BackendError, ModelError, ParityError, first_line

BATCHES = (1, 3)
"""Neither is the batch of the example that the export traced, so a batch baked into the graph is found."""
TOLERANCE = 1e-4

Outputs = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Deviation:
    """One output at one batch size.

    Attributes:
        output: its name.
        batch: images in the batch.
        error: max |graph - module| / max |module|; inf where a value is not finite or the shapes differ.
        magnitude: max |module|. At 0 the graph must be 0 too, which proves little.
    """

    output: str
    batch: int
    error: float
    magnitude: float


@dataclass(frozen=True)
class Parity:
    """A comparison that held.

    Attributes:
        deviations: by batch size, then by output.
        tolerance: bound of every `error`.
        seed: of the images.
    """

    deviations: tuple[Deviation, ...]
    tolerance: float
    seed: int

    @property
    def worst(self) -> Deviation:
        """The output with the largest error."""
        return max(self.deviations, key=lambda d: d.error)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def compare(
    model: nn.Module,
    onnx_path: Path,
    *,
    image_size: int,
    tolerance: float = TOLERANCE,
    batches: Sequence[int] = BATCHES,
    seed: int = 0,
) -> Parity:
    """Run the module and the graph in ONNX Runtime on the same images, and compare every output.

    Args:
        model: from images (B, 3, S, S) to a tuple of tensors, in the order of the graph's outputs, or to one tensor.
        onnx_path: the graph exported from it.
        image_size: S, pixels.
        tolerance: largest error of an output.
        batches: batch sizes to run.
        seed: of the images, standard normal as preprocessed images nearly are.

    Raises:
        ParityError: an output deviates by more than the tolerance; names the worst.
        ModelError: the file is no ONNX model, or its outputs are not as many as the module's.
        BackendError: ONNX Runtime cannot load or run the graph, as where its batch is not dynamic.
    """
    names = _output_names(onnx_path)
    generator = np.random.default_rng(seed)
    images = [generator.standard_normal((batch, 3, image_size, image_size), np.float32) for batch in batches]
    references = [_reference(model, batch, names, onnx_path) for batch in images]
    deviations: list[Deviation] = []
    held = True
    for reference, outputs in zip(references, _run(onnx_path, images), strict=True):
        agreed, found = _deviations(reference, outputs, tolerance)
        held = held and agreed
        deviations.extend(found)
    parity = Parity(tuple(deviations), tolerance, seed)
    worst = parity.worst
    if not held or worst.error > tolerance:
        raise ParityError(
            f"Output '{worst.output}' of {onnx_path} deviates from the model by {worst.error:.2g} of its largest value "
            f"at batch {worst.batch}, more than {tolerance:.2g}: do not use the file; export it again from this model."
        )
    return parity


def _output_names(onnx_path: Path) -> list[str]:
    return [value.name for value in read_onnx(onnx_path).graph.output]


def _reference(model: nn.Module, images: NDArray[np.float32], names: Sequence[str], onnx_path: Path) -> Outputs:
    with evaluating(model), torch.no_grad():
        returned = model(torch.from_numpy(images).to(device_of(model)))
    tensors = (returned,) if isinstance(returned, torch.Tensor) else tuple(returned)
    if len(tensors) != len(names):
        raise ModelError(
            f"{onnx_path} has {len(names)} outputs ({', '.join(names)}) and the model {len(tensors)}: "
            "compare a graph with the model that it was exported from."
        )
    return {name: tensor.cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}


def _run(onnx_path: Path, images: Sequence[NDArray[np.float32]]) -> list[Outputs]:
    runner = OnnxrtRunner(SessionFromOnnx(str(onnx_path)), name="onnx")
    try:
        with _quiet():
            results = Comparator.run([runner], data_loader=[{INPUT: batch} for batch in images])
    except Exception as error:  # onnxruntime's exceptions have no public base, and Polygraphy adds its own
        raise BackendError(
            f"ONNX Runtime does not run {onnx_path} at batch sizes {', '.join(str(len(b)) for b in images)} "
            f"({first_line(error)}): export it again with a dynamic batch."
        ) from error
    return [dict(iteration) for iteration in results["onnx"]]


def _deviations(reference: Outputs, outputs: Outputs, tolerance: float) -> tuple[bool, list[Deviation]]:
    """Polygraphy's verdict on one batch, and each output's error."""
    magnitudes = {name: float(np.abs(value).max()) for name, value in reference.items()}
    judge = SimpleCompareFunc(
        rtol=0,
        atol={name: tolerance * magnitude for name, magnitude in magnitudes.items()},
        check_error_stat="max",
        fail_fast=False,
    )
    pair = RunResults(
        [(name, [IterationResult(dict(values))]) for name, values in (("onnx", outputs), ("torch", reference))]
    )
    with _quiet():
        accuracy = Comparator.compare_accuracy(pair, compare_func=judge)
    ((_, (verdicts,)),) = accuracy[0].items()
    return bool(accuracy), [
        Deviation(name, len(value), _error(verdicts.get(name), magnitudes[name]), magnitudes[name])
        for name, value in reference.items()
    ]


def _error(verdict: object, magnitude: float) -> float:
    """Relative to the reference's largest value; inf where Polygraphy measured nothing finite."""
    # Polygraphy's verdict on tensors of different shapes is a bare False.
    absolute = float(getattr(verdict, "max_absdiff", np.inf))
    if absolute == 0:
        return 0.0
    return absolute / magnitude if magnitude and np.isfinite(absolute) else float("inf")


@contextmanager
def _quiet() -> Iterator[None]:
    """Polygraphy prints its progress and verdicts; ours are the return value and the error."""
    with G_LOGGER.verbosity(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="polygraphy")
        yield
