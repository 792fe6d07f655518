"""The in-memory backend: a Python function as the engine. It keeps the other backends' contract without a runtime."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engines.backend import PLAIN, Availability, BuildOptions, Feeds, Input, check_feeds, refuse_options
from engines.feeds import closed
from engines.host_timing import timed_on_host
from engines.onnx_graph import graph_from_onnx
from engines.sealing import opened, sealed, session_metadata
from engines.timing import TimingOptions, Timings
from toolchain.artifacts import Artifact, writing
from toolchain.errors import BackendError
from toolchain.progress import Progress, silent

Function = Callable[[Feeds], dict[str, NDArray[Any]]]


def echo(feeds: Feeds) -> dict[str, NDArray[Any]]:
    """Every input as the output of the same name."""
    return dict(feeds)


@dataclass
class MemorySession:
    """A function dressed as an open engine.

    Attributes:
        function: feeds -> outputs.
        inputs: names it must be fed.
        outputs: names it answers with.
        metadata: what travelled with the model.
        clock: seconds; scripted in tests.
        taken: what is known of the inputs; nothing asks whether it is fed so.
    """

    function: Function = echo
    inputs: tuple[str, ...] = ("image",)
    outputs: tuple[str, ...] = ("image",)
    metadata: dict[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.perf_counter
    taken: tuple[Input, ...] = ()
    closed: bool = field(default=False, init=False)

    def close(self) -> None:
        """Let go of the function."""
        self.function, self.closed = echo, True

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Call the function; BackendError where a name is missing or unknown, and after `close`."""
        if self.closed:
            raise closed("The memory engine")
        check_feeds(feeds, self.inputs)
        return self.function(feeds)

    def time(self, feeds: Feeds, iterations: int, options: TimingOptions = PLAIN) -> Timings:
        """Milliseconds of each call by `clock`."""
        return timed_on_host(lambda: self.run(feeds), iterations, options, "The memory backend", self.clock, "memory")


@dataclass(frozen=True)
class MemoryBackend:
    """Its engine file holds the names of inputs and outputs; what it computes is `function`."""

    function: Function = echo
    inputs: tuple[str, ...] = ("image",)
    outputs: tuple[str, ...] = ("image",)

    @property
    def name(self) -> str:
        """`memory`."""
        return "memory"

    def availability(self) -> Availability:
        """Everywhere."""
        return Availability(build=True, run=True)

    def build(self, model: Path, output: Path, options: BuildOptions, progress: Progress = silent) -> Artifact:
        """Check that `model` is ONNX and write the names down."""
        refuse_options(options, "The memory backend", "it compiles nothing; leave it out")
        graph_from_onnx(model)
        with writing(output) as temporary:
            temporary.write_text(json.dumps({"inputs": self.inputs, "outputs": self.outputs}))
        progress(1, 1)
        return sealed(model, output, self.name, options)

    @contextmanager
    def open(self, engine: Path) -> Iterator[MemorySession]:
        """The function under the names that the engine file holds."""
        artifact = opened(engine, self.name)
        try:
            names = json.loads(engine.read_text())
            inputs, outputs = tuple(names["inputs"]), tuple(names["outputs"])
        except (ValueError, KeyError, TypeError) as error:
            raise BackendError(f"{engine} is no engine of the memory backend: build it again.") from error
        session = MemorySession(self.function, inputs, outputs, session_metadata(artifact.metadata))
        try:
            yield session
        finally:
            session.close()
