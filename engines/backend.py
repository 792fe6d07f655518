"""The vocabulary of engines: what is asked of a build, what a backend and an open session offer."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.timing import TimingOptions, Timings
from toolchain.artifacts import Artifact, sha256_of
from toolchain.errors import BackendError, UsageError, chosen
from toolchain.progress import Progress, silent

Feeds = Mapping[str, NDArray[Any]]
"""Input name -> array, batch first."""
PLAIN = TimingOptions()
"""One call after the other, inputs and outputs on the host."""
HIGHEST_LEVEL = 5
"""Of `BuildOptions.optimization_level`."""
HARDWARE_LEVELS = {"ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
"""Our word -> TensorRT's `HardwareCompatibilityLevel`."""


@dataclass(frozen=True)
class BatchProfile:
    """The batch sizes an engine accepts, and the one it is tuned for.

    Raises:
        UsageError: not `1 <= minimum <= optimum <= maximum`.
    """

    minimum: int = 1
    optimum: int = 8
    maximum: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise UsageError(
                f"Batch profile {self.minimum}/{self.optimum}/{self.maximum} is out of order: "
                "give minimum <= optimum <= maximum, all at least 1."
            )


@dataclass(frozen=True)
class ShapeProfile:
    """The shapes of one input that an engine accepts, and the one it is tuned for.

    Raises:
        UsageError: different ranks, or not `1 <= minimum <= optimum <= maximum` in every dimension.
    """

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def __post_init__(self) -> None:
        shapes = (self.minimum, self.optimum, self.maximum)
        ordered = all(1 <= low <= mid <= high for low, mid, high in zip(*shapes, strict=False))
        if len({len(shape) for shape in shapes}) > 1 or not ordered:
            raise UsageError(
                f"Shape profile {'/'.join(shape_text(shape) for shape in shapes)} is out of order: give as many "
                "dimensions to each, and minimum <= optimum <= maximum, all at least 1."
            )


def shape_text(shape: Sequence[int]) -> str:
    """`(1, 3, 224, 224)` as people write it: `1x3x224x224`."""
    return "x".join(str(size) for size in shape)


@dataclass(frozen=True)
class BuildOptions:
    """What a build is asked for. A backend refuses an option that it cannot honour; see `refuse_options`.

    Attributes:
        targets: GPU architectures such as `sm89`; empty: whatever the builder calls portable.
        workspace: scratch memory limit in bytes; None: the builder's own.
        batch: batch sizes of the engine, where the model's batch is dynamic.
        shapes: input -> its shapes, in place of `batch`, for a model with other dynamic dimensions.
        optimization_level: 0 (quick to build) to 5 (long search); None: the builder's own.
        timing_cache: file of kernel timings, read if it is there and written back.
        version_compatible: the engine runs in later versions of its runtime, too.
        hardware_compatibility: `none` or one of `HARDWARE_LEVELS`: on which GPUs other than the builder's it runs.
        calibration_cache: file of ranges for implicit INT8, as `lctr quantize --cache` writes it.
        metadata: carried into the engine's sidecar unread (preprocessing, class names, tau); JSON values.

    Raises:
        UsageError: no such optimization level or hardware compatibility.
    """

    targets: tuple[str, ...] = ()
    workspace: int | None = None
    batch: BatchProfile = field(default_factory=BatchProfile)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, ShapeProfile] = field(default_factory=dict)
    optimization_level: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    calibration_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= HIGHEST_LEVEL:
            raise UsageError(
                f"There is no optimization level {self.optimization_level}: give 0 (quick) to {HIGHEST_LEVEL} (long)."
            )
        if self.hardware_compatibility != "none":
            chosen("hardware compatibility", self.hardware_compatibility, {"none": None, **HARDWARE_LEVELS})

    def parameters(self) -> dict[str, Any]:
        """What shapes the engine, as the sidecar records it: files by name, and by hash where their content counts.

        Raises:
            ArtifactError: the calibration cache cannot be read.
        """
        cache = self.calibration_cache
        return {
            "targets": list(self.targets),
            "workspace": self.workspace,
            "batch": None if self.shapes else [self.batch.minimum, self.batch.optimum, self.batch.maximum],
            "shapes": {n: [list(p.minimum), list(p.optimum), list(p.maximum)] for n, p in self.shapes.items()},
            "optimization_level": self.optimization_level,
            # Not its content: every build adds to it.
            "timing_cache": self.timing_cache.name if self.timing_cache else None,
            "version_compatible": self.version_compatible,
            "hardware_compatibility": self.hardware_compatibility,
            "calibration_cache": {"name": cache.name, "sha256": sha256_of(cache)} if cache else None,
        }

    @property
    def asked(self) -> dict[str, str]:
        """Field -> what was asked for, in words; fields that a backend may be unable to honour, where they are set."""
        words = {
            "targets": f"target '{', '.join(self.targets)}'",
            "workspace": f"workspace {self.workspace}",
            "shapes": f"shape profile of '{', '.join(self.shapes)}'",
            "optimization_level": f"optimization level {self.optimization_level}",
            "timing_cache": f"timing cache {self.timing_cache}",
            "version_compatible": "version compatibility",
            "hardware_compatibility": f"hardware compatibility '{self.hardware_compatibility}'",
            "calibration_cache": f"calibration cache {self.calibration_cache}",
        }
        plain = BuildOptions()
        return {name: text for name, text in words.items() if getattr(self, name) != getattr(plain, name)}


def refuse_options(options: BuildOptions, builder: str, reasons: Mapping[str, str] | str) -> None:
    """Refuse what a builder cannot honour.

    Args:
        options: what was asked for.
        builder: what the message calls it.
        reasons: field of `BuildOptions.asked` -> why not, and what to do; a string: of every field.

    Raises:
        UsageError: an option with a reason is set.
    """
    for name, words in options.asked.items():
        reason = reasons if isinstance(reasons, str) else reasons.get(name)
        if reason:
            raise UsageError(f"{builder} takes no {words}: {reason}.")


@dataclass(frozen=True)
class Input:
    """One input of a model.

    Attributes:
        name: what `run` must feed it as.
        dtype: of the elements.
        shape: sizes; a name where any size is taken, such as `batch`.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Availability:
    """What a backend can do on this machine.

    Attributes:
        build: it can build engines here.
        run: it can run engines here.
        reason: one sentence when either is False, empty otherwise.
    """

    build: bool
    run: bool
    reason: str = ""


class Session(Protocol):
    """An engine, open and ready to run."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names that `run` must be fed."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names that `run` answers with."""

    @property
    def taken(self) -> tuple[Input, ...]:
        """Type and shape of each of `inputs`; empty where nothing says them."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What travelled with the model; values that were no strings are JSON."""

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Compute every output for one batch.

        Raises:
            BackendError: an input is missing, unknown, or of the wrong shape or type, or the session was closed.
        """

    def time(self, feeds: Feeds, iterations: int, options: TimingOptions = PLAIN) -> Timings:
        """Run the same batch `iterations` times (at least once) and time each call with the backend's own clock.

        Raises:
            BackendError: as `run`.
            UsageError: no iteration, or an option that this session cannot honour.
        """


class Backend(Protocol):
    """A runtime that turns an ONNX file into an engine, and opens engines."""

    @property
    def name(self) -> str:
        """What `--backend` and the sidecar call it."""

    def availability(self) -> Availability:
        """What works on this machine; cheap, loads no runtime and never raises."""

    def build(self, model: Path, output: Path, options: BuildOptions, progress: Progress = silent) -> Artifact:
        """Build `output` and its sidecar from the ONNX file `model`; on an error neither is left.

        Raises:
            ModelError: `model` is missing, truncated or no ONNX.
            UsageError: an option that this backend cannot honour.
            BackendUnavailable: the builder is not installed.
            BackendError: the builder refused.
        """

    def open(self, engine: Path) -> AbstractContextManager[Session]:
        """Open an engine of this backend whose content matches its sidecar.

        Leaving the context closes the session: its memory is given back, and it answers no more.

        Raises:
            ArtifactError: the engine is missing, or is not what its sidecar describes.
            BackendUnavailable: this machine cannot run it.
            BackendError: the runtime refused it.
        """


def check_feeds(feeds: Feeds, inputs: Sequence[str]) -> None:
    """Refuse feeds that do not name exactly `inputs`.

    Raises:
        BackendError: a name is missing or unknown.
    """
    wrong = set(inputs) ^ set(feeds)
    if wrong:
        state = "is not fed" if (name := min(wrong)) in inputs else "is no input"
        raise BackendError(f"'{name}' {state}: feed exactly {', '.join(inputs)}.")
