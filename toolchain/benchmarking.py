"""One run of `lctr benchmark`: engines timed side by side, their outputs compared, accuracy, bounds, and the record."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calib.image_set import noise
from engines.backend import Feeds, Session
from engines.benchmark import Benchmark, Settings, benchmark
from engines.caveats import busy_cpu
from engines.feeds import random_feeds
from engines.nvml import Absent, Gpu, opened_gpu
from engines.registry import file_and_backend
from toolchain.artifacts import identity, machine, size_of, versions, writing
from toolchain.comparison import FEEDS, Accuracy, accuracies, feeds_from_images
from toolchain.data.sources import open_data
from toolchain.errors import BackendUnavailable, UsageError
from toolchain.gates import Gates, Judgement, check_outputs, judged
from toolchain.localizer import is_localizer, localizer_from_session, open_session
from toolchain.progress import Step, unwatched

SCHEMA_VERSION = 1
"""Of the record."""
SPLIT = "test"


@dataclass(frozen=True)
class Question:
    """What to compare, and how.

    Attributes:
        files: as on the command line: FILE, or FILE@BACKEND.
        reference: the one that the others are compared with, timed with them; None: the first of `files`.
        sizes: batch sizes.
        settings: of the benchmark.
        data: whose test images accuracy is measured on, as for `--data`; None: it is not.
        images: of those, at most.
        seed: of the noise that latency is measured on.
        gates: bounds.
        runtime_caches: as for `engines.registry.open_engine`.

    Raises:
        UsageError: a bound on the drop with nothing to measure one on or against, or a batch size that is none.
    """

    files: tuple[str, ...]
    reference: str | None = None
    sizes: tuple[int, ...] = (1, 8)
    settings: Settings = field(default_factory=Settings)
    data: str | None = None
    images: int | None = None
    seed: int = 0
    gates: Gates = field(default_factory=Gates)
    runtime_caches: Path | None = None

    def __post_init__(self) -> None:
        if self.gates.max_drop is not None and not self.data:
            raise UsageError("--max-drop needs images to measure a drop on: name a data set with --data.")
        if self.gates.max_drop is not None and len(self.contenders) < 2:
            raise UsageError("--max-drop needs a reference to lose against: name a second file, or --reference.")

    @property
    def contenders(self) -> dict[str, str]:
        """Name in tables -> file as on the command line, the reference first.

        A name is the file's own; with the folder where another file has it, too.
        """
        ordered = [*([self.reference] if self.reference else []), *self.files]
        texts = list(dict.fromkeys(ordered))
        short = [Path(text).name for text in texts]
        return {name if short.count(name) == 1 else text: text for name, text in zip(short, texts, strict=True)}


@dataclass(frozen=True)
class Compared:
    """What a run found.

    Attributes:
        question: what was asked.
        latency: figures and how far the outputs are from the reference's.
        accuracy: of every file whose outputs are sound; empty without data.
        files: name -> path, kind, sha256 and bytes.
        warnings: what makes figures doubtful, and bounds that noise leaves open.
        judgement: what became of the bounds.
    """

    question: Question
    latency: Benchmark
    accuracy: Mapping[str, Accuracy]
    files: Mapping[str, Mapping[str, Any]]
    warnings: tuple[str, ...]
    judgement: Judgement

    def as_dict(self, *, samples: bool = False) -> dict[str, Any]:
        """JSON-able: summaries, or with them every sample. The SNR of equal outputs, infinite, is None."""
        record = {
            "schema": SCHEMA_VERSION,
            "files": self.files,
            "data": self.question.data,
            "latency": self.latency.as_dict(samples=samples),
            "accuracy": {name: found.as_dict() for name, found in self.accuracy.items()},
            "warnings": self.warnings,
            "bounds": {**asdict(self.question.gates), **asdict(self.judgement)},
            "machine": machine(),
            "versions": versions(),
        }
        plain: dict[str, Any] = _finite(record)
        return plain

    def enforce(self) -> None:
        """Raise what there is to raise, after everything was shown.

        Raises:
            ModelError: an engine returns broken outputs.
            BackendUnavailable: a bound that nothing can be held against.
            GateFailed: a bound does not hold.
        """
        check_outputs(self.latency)
        self.judgement.enforce()


def compared(question: Question, step: Step = unwatched) -> Compared:
    """Measure.

    Raises:
        UsageError: an option that a session cannot honour.
        BackendUnavailable: energy is bounded and nothing here counts it; found before anything is measured.
        LctrError: a file cannot be opened or run.
    """
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        gpu = stack.enter_context(opened_gpu())
        _require_energy(question.gates, gpu)
        sessions = {
            name: stack.enter_context(open_session(*file_and_backend(text), question.runtime_caches))
            for name, text in question.contenders.items()
        }
        latency = _latency(question, sessions, gpu, step)
        accuracy = _accuracy(question, sessions, latency, step)
    judgement = judged(question.gates, latency, accuracy)
    warnings = (*_warnings(latency, load), *judgement.doubtful)
    return Compared(question, latency, accuracy, _identities(question), warnings, judgement)


def write_record(found: Compared, output: Path) -> None:
    """Everything as JSON, every sample included.

    Raises:
        ArtifactError: the place cannot be written to.
    """
    with writing(output) as temporary:
        temporary.write_text(json.dumps(found.as_dict(samples=True), allow_nan=False) + "\n")


def sizes_from_options(texts: Sequence[str]) -> tuple[int, ...]:
    """Batch sizes as `--batch` gives them: lists with commas, repeated or not.

    Raises:
        UsageError: one is no positive whole number.
    """
    parts = [part.strip() for text in texts for part in text.split(",")]
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise UsageError(f"--batch {part} is no batch size: give whole numbers from 1 on, such as 1,8,32.")
    return tuple(int(part) for part in parts)


def _require_energy(gates: Gates, gpu: Gpu | Absent) -> None:
    if gates.max_energy is not None and isinstance(gpu, Absent):
        raise BackendUnavailable(
            f"--max-energy cannot be held, for nothing counts energy here ({gpu.reason}): leave it out, or measure "
            "where there is an NVIDIA GPU."
        )


def _latency(question: Question, sessions: Mapping[str, Session], gpu: Gpu | Absent, step: Step) -> Benchmark:
    reference, session = next(iter(sessions.items()))
    feeds = _feeds(question, session, reference)
    return benchmark(sessions, feeds, question.settings, step("latency"), gpu)


def _feeds(question: Question, session: Session, source: str) -> Sequence[Sequence[Feeds]]:
    """Noise as the reference takes it: images for a localizer, whatever its types and shapes are for another model."""
    if is_localizer(session):
        window = localizer_from_session(session, source).card.preprocessing
        return feeds_from_images(noise(FEEDS * max(question.sizes), window.image_size, question.seed), question.sizes)
    seeds = range(question.seed, question.seed + FEEDS)
    return [[random_feeds(session.taken, size, seed, source) for seed in seeds] for size in question.sizes]


def _accuracy(
    question: Question, sessions: Mapping[str, Session], latency: Benchmark, step: Step
) -> dict[str, Accuracy]:
    """Of the files with sound outputs; of none where the reference's are not."""
    broken = {name for row in latency.batches.values() for name, found in row.items() if found.problems}
    if question.data is None or latency.baseline in broken:
        return {}
    localizers = {name: localizer_from_session(s, name) for name, s in sessions.items() if name not in broken}
    window = localizers[latency.baseline].card.preprocessing
    return accuracies(localizers, open_data(question.data, SPLIT, window, question.images), step("accuracy"))


def _warnings(latency: Benchmark, load: float) -> tuple[str, ...]:
    rows = [(size, name, found) for size, row in latency.batches.items() for name, found in row.items()]
    on_cpu = any(not found.timings.on_gpu for _, _, found in rows)
    busy = busy_cpu(load, len(os.sched_getaffinity(0))) if on_cpu else ()
    return (*busy, *(f"{name}, batch {size}: {caveat}" for size, name, found in rows for caveat in found.caveats))


def _finite(value: Any) -> Any:
    """The same without numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _identities(question: Question) -> dict[str, dict[str, Any]]:
    found = {}
    for name, text in question.contenders.items():
        path, backend = file_and_backend(text)
        found[name] = {"path": str(path), "backend": backend, "bytes": size_of(path), **identity(path)}
    return found
