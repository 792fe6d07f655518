"""The vocabulary of engines: what is asked of a build, what a backend and an open session offer."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from engines.timing import TimingOptions, Timings
from toolchain.artifacts import Artifact
from toolchain.errors import BackendError, UsageError
from toolchain.progress import Progress, silent

Feeds = Mapping[str, NDArray[Any]]
"""Input name -> array, batch first."""
PLAIN = TimingOptions()
"""One call after the other, inputs and outputs on the host."""


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
class BuildOptions:
    """What a build is asked for. A backend refuses an option that it cannot honour.

    Attributes:
        targets: GPU architectures such as `sm89`; empty: whatever the builder calls portable.
        workspace: scratch memory limit in bytes; None: the builder's own.
        batch: batch sizes of the engine, where the model's batch is dynamic.
        metadata: carried into the engine's sidecar unread (preprocessing, class names, tau); JSON values.
    """

    targets: tuple[str, ...] = ()
    workspace: int | None = None
    batch: BatchProfile = field(default_factory=BatchProfile)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self) -> dict[str, Any]:
        """What shapes the engine, as the sidecar records it."""
        batch = [self.batch.minimum, self.batch.optimum, self.batch.maximum]
        return {"targets": list(self.targets), "workspace": self.workspace, "batch": batch}


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
