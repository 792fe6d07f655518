"""Builds the engines that `lctr build --precision auto` chooses among, measures them, and ships one."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calib.image_set import noise
from engines.backend import BuildOptions
from engines.benchmark import Benchmark, Settings, benchmark
from engines.build import build
from engines.onnx_graph import graph_from_onnx
from engines.products import QUANTIZATION_OPS
from engines.registry import backend, open_engine
from engines.sealing import KIND
from toolchain.artifacts import Artifact, code_version, read_sidecar, seal, sidecar_of, writing
from toolchain.comparison import FEEDS, Accuracy, accuracies, feeds_from_images
from toolchain.data.sources import open_data
from toolchain.errors import BackendUnavailable, UsageError
from toolchain.localizer import localizer_from_session
from toolchain.precision import Decision, candidate_from_measurement, decision
from toolchain.probe import IMAGES, SPLIT, points_lost
from toolchain.progress import Progress, Step, unwatched
from toolchain.sensitivity import AUTO, MAX_DROP, checked_drop

CHECKPOINT = ".safetensors"
EXPORTED = ("fp32", "fp16")
"""What is exported of a checkpoint."""


@dataclass(frozen=True)
class Question:
    """What to choose by.

    Attributes:
        data: whose `val` images accuracy is measured on, as for `--data`.
        max_drop: points that may be lost of GT-Known Loc or Top-1 Loc against the first candidate.
        images: to measure on, at most.
        options: of every build. Latency is measured at the batch size that the engines are tuned for.
        settings: of the benchmark.
    """

    data: str
    max_drop: float
    images: int = IMAGES
    options: BuildOptions = field(default_factory=BuildOptions)
    settings: Settings = field(default_factory=lambda: Settings(warmup=3, rounds=10, iterations=5))


@dataclass(frozen=True)
class Choice:
    """What was chosen, what it was measured to be, and the engine."""

    decision: Decision
    latency: Benchmark
    accuracy: Mapping[str, Accuracy]
    artifact: Artifact


def question_from_options(
    files: Sequence[Path],
    precision: str | None,
    *,
    data: str | None,
    max_drop: float | None,
    eval_images: int | None,
    options: BuildOptions,
) -> Question | None:
    """What the options of `lctr build` ask; None: to build the one file that was named.

    Raises:
        UsageError: another precision, several files without it, or an option that has no meaning with what was asked.
    """
    if precision is None:
        given = {"--data": data, "--max-drop": max_drop, "--eval-images": eval_images}
        if named := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"{named[0]} is for --precision auto, which was not asked for: add it, or leave it out.")
        if len(files) > 1:
            raise UsageError(f"{files[1]} is a second file: name one, or let --precision auto choose among them.")
        return None
    if precision != AUTO:
        raise UsageError(
            f"--precision {precision} is no choice: an ONNX file has its types in itself; name the file, or use auto."
        )
    if data is None:
        raise UsageError("--precision auto holds accuracy against --max-drop: name a data set with boxes with --data.")
    allowed = MAX_DROP if max_drop is None else max_drop
    return Question(data, checked_drop(allowed), IMAGES if eval_images is None else eval_images, options)


def choose(
    files: Sequence[Path], backend_name: str, output: Path, question: Question, step: Step = unwatched
) -> Choice:
    """Build all, measure all, ship one.

    Args:
        files: ONNX files in order of precision, the reference first; a checkpoint stands for its FP32 and FP16 exports.
        backend_name: that they are built for, and run in.
        output: engine to write; the candidates stand in the folder `NAME.candidates` beside it, and are reused.
        question: see there.
        step: where progress goes.

    Raises:
        UsageError: fewer than two candidates, or a quantized one for the reference.
        BackendUnavailable: the engines cannot run here, so nothing can be measured.
        LctrError: a build or a measurement failed.
    """
    availability = backend(backend_name).availability()
    if not (availability.build and availability.run):
        raise BackendUnavailable(
            f"Nothing could be measured, so nothing was chosen: {availability.reason.rstrip('.')}; or choose yourself, "
            "and build one file without --precision auto."
        )
    folder = output.with_name(f"{output.stem}.candidates")
    models = _named(_exported(files, folder, step))
    engines = {
        name: _built(model, backend_name, folder / f"{place}.engine", question, step(f"build {name}"))
        for place, (name, model) in enumerate(models.items())
    }
    latency, accuracy = _measured(engines, question, step)
    (row,) = latency.batches.values()
    reference = next(iter(accuracy.values())).evaluation
    candidates = [
        candidate_from_measurement(name, points_lost(reference, found.evaluation), row[name])
        for name, found in accuracy.items()
    ]
    decided = decision(candidates, question.max_drop)
    facts = {
        "verdict": decided.verdict,
        "max_drop": question.max_drop,
        "data": f"{reference.images} {SPLIT} images of {question.data}",
        "latency": latency.as_dict(),
        "accuracy": {name: found.as_dict() for name, found in accuracy.items()},
    }
    return Choice(decided, latency, accuracy, _shipped(decided.winner, engines, models, output, facts))


def _exported(files: Sequence[Path], folder: Path, step: Step) -> list[Path]:
    """The ONNX files; what a checkpoint stands for is exported."""
    models: list[Path] = []
    for file in files:
        if file.suffix == CHECKPOINT:
            # Late: a deployment machine has no torch and gives ONNX files.
            from toolchain.stages import float_onnx

            for precision in EXPORTED:
                step(f"export {precision}")
                models.append(float_onnx(file, folder / f"{precision}.onnx", precision=precision).artifact.path)
        else:
            models.append(file)
    if len(models) < 2:
        raise UsageError(
            f"--precision auto chooses among files, and {files[0]} is alone: add the others, such as the INT8 one of "
            "`lctr quantize`."
        )
    return models


def _named(models: Sequence[Path]) -> dict[str, Path]:
    """What each is -> the file."""
    kinds = [_precision(model) for model in models]
    if kinds[0] == "INT8":
        raise UsageError(
            f"{models[0]} is quantized, and the others are held against the first file: put the float one first."
        )
    names = [kind if kind and kinds.count(kind) == 1 else model.name for kind, model in zip(kinds, models, strict=True)]
    if len(set(names)) < len(names):
        names = [str(model) for model in models]
    if len(set(names)) < len(names):
        raise UsageError(f"{models[0]} and the others repeat: name each file once.")
    return dict(zip(names, models, strict=True))


def _precision(model: Path) -> str:
    """`INT8` for a graph with Q/DQ; otherwise what the export recorded, and "" where nobody did."""
    if any(node.op in QUANTIZATION_OPS for node in graph_from_onnx(model).nodes):
        return "INT8"
    recorded = read_sidecar(model).parameters.get("precision", "") if sidecar_of(model).exists() else ""
    return str(recorded).upper()


def _built(model: Path, backend_name: str, engine: Path, question: Question, progress: Progress) -> Path:
    options = replace(question.options, metadata=graph_from_onnx(model).metadata)
    return build(model, backend_name, engine, options, progress)[0].path


def _measured(engines: Mapping[str, Path], question: Question, step: Step) -> tuple[Benchmark, dict[str, Accuracy]]:
    with ExitStack() as stack:
        sessions = {name: stack.enter_context(open_engine(engine)) for name, engine in engines.items()}
        localizers = {name: localizer_from_session(session, name) for name, session in sessions.items()}
        window = next(iter(localizers.values())).card.preprocessing
        held_out = open_data(question.data, SPLIT, window, question.images)
        accuracy = accuracies(localizers, held_out, step("accuracy"))
        size = question.options.batch.optimum
        feeds = feeds_from_images(noise(FEEDS * size, window.image_size, 0), [size])
        return benchmark(sessions, feeds, question.settings, step("latency")), accuracy


def _shipped(
    winner: str, engines: Mapping[str, Path], models: Mapping[str, Path], output: Path, facts: Mapping[str, Any]
) -> Artifact:
    """The winner's engine under the name asked for; its sidecar says what it won against, and by what."""
    made = read_sidecar(engines[winner])
    with writing(output) as temporary:
        shutil.copyfile(engines[winner], temporary)
    return seal(
        output,
        KIND,
        parameters={**made.parameters, "precision": "auto", "chosen": winner},
        inputs={"model": models[winner], **{name: model for name, model in models.items() if name != winner}},
        metadata={"verdict": facts["verdict"], **made.metadata, "choice": dict(facts)},
        code=code_version("engines", "toolchain/precision.py", "toolchain/choice.py"),
    )
