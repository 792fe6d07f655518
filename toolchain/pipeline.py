"""A deployment from checkpoint to report: the arrows of the design one after the other, each skipped if unchanged."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from calib import image_set
from calib.fdda import FAST
from engines.backend import BuildOptions
from engines.benchmark import Settings, benchmark
from engines.build import build
from engines.inspect import inspect
from engines.registry import backend, open_engine
from toolchain import calibration, quantization, stages
from toolchain.artifacts import Artifact, Made, code_version, load, read_sidecar, reusable, seal, sidecar_of, writing
from toolchain.calibration import CalibrationSource
from toolchain.card import ModelCard
from toolchain.comparison import FEEDS, accuracies, accuracy_from_dict, feeds_from_images
from toolchain.data.dataset import Sample
from toolchain.data.sources import files_of, open_data
from toolchain.errors import ArtifactError
from toolchain.findings import Arm, Example, Findings, Stage
from toolchain.localizer import Localizer, localize_crop, localizer_from_session, open_localizer
from toolchain.model import checkpoint
from toolchain.preprocessing import Preprocessing
from toolchain.progress import Progress, Step, unwatched
from toolchain.report import report_from_findings
from toolchain.requests import Request
from toolchain.teachers import localizer_teacher, statistics_of

Looked = TypeVar("Looked")

BUNDLED = Path(__file__).parent / "bundled" / "lctr-nano.safetensors"
"""The localizer that ships with the package, trained on `shapes`; its statistics stand beside it."""
ENGINE_BACKEND = "tensorrt-rtx"
EXAMPLES = 6
FP32, FDDA, NOISE, REAL = "FP32", "INT8, FDDA", "INT8, noise", "INT8, real images"
ENGINE = "INT8, FDDA, FP16 base"
"""What the engine is made of: TensorRT fuses attention in FP16, not in FP32."""


@dataclass(frozen=True)
class Plan:
    """What to deploy, and how thoroughly.

    Attributes:
        data: where the held-out images are, as for `--data`; nothing of it is read before the engine is built.
        calibration_images: synthetic images, and as many noise and real ones for the other arms.
        steps: of the generator's training.
        seed: of the generator.
        method: how ranges are chosen, as for `--method`.
        targets: GPU architectures of the engine; empty: what the builder calls portable.
        test_images: held-out images to evaluate on, all by default.
        batch_sizes: to benchmark.
        settings: of the benchmark.
    """

    data: str = "shapes"
    calibration_images: int = 512
    steps: int = FAST.steps
    seed: int = 0
    method: str = "auto"
    targets: tuple[str, ...] = ()
    test_images: int | None = None
    batch_sizes: tuple[int, ...] = (1, 8)
    settings: Settings = field(default_factory=lambda: Settings(warmup=3, rounds=10, iterations=5))


@dataclass(frozen=True)
class Deployment:
    """What came out, and where the report is."""

    report: Path
    findings: Findings


def deploy(
    model: Path,
    output: Path,
    plan: Plan,
    *,
    step: Step = unwatched,
    ended: Callable[[Stage], None] = lambda stage: None,
) -> Deployment:
    """Take a localizer from checkpoint to INT8 engine and report, in the folder `output`.

    Args:
        model: a checkpoint of `lctr train`; its statistics stand beside it.
        output: folder; artifacts found there that were made of the same parts are reused.
        plan: see there.
        step: where the progress of each stage goes.
        ended: told after each stage.

    Raises:
        LctrError: any stage's; earlier stages' artifacts stay and are reused by the next run.
    """
    card = checkpoint.card_of(model)
    files_of(plan.data, card.preprocessing)
    bundle = statistics_of(model)
    if not bundle.exists():
        raise ArtifactError(
            f"{bundle} does not exist: make it where the training images are, with "
            f"`lctr statistics {model} --data {plan.data}`."
        )
    run = _Run(step, ended)
    compiled = _compile(run, model, card, bundle, output, plan)
    latency = run.make(
        "benchmark", lambda progress: _latency(compiled, card, plan, output / "benchmark.json", progress)
    )
    # From here on real images are read: the engine is finished.
    arms = {FP32: compiled.fp32, FDDA: compiled.int8, ENGINE: compiled.int8_half}
    others = {
        NOISE: (calibration.noise(plan.calibration_images, plan.seed), "model.int8-noise.onnx"),
        REAL: (
            calibration.training_images(plan.data, plan.calibration_images, card.preprocessing),
            "model.int8-real.onnx",
        ),
    }
    for name, (source, file) in others.items():
        arms[name] = _quantized(run, compiled.fp32, source, output / file, plan)
    evaluated = run.make(
        "evaluate", lambda progress: _evaluation(arms, card, plan, output / "evaluation.json", progress)
    )
    files = [compiled.int8] + ([compiled.engine] if compiled.engine else [])
    findings = Findings(
        card=card,
        data=plan.data,
        arms=_arms(arms, _read(evaluated)),
        latency=_read(latency),
        inspections=run.look("inspect", lambda progress: {file.name: inspect(file).as_dict() for file in files}),
        not_run=compiled.not_run,
        examples=run.look("examples", lambda progress: _examples(compiled, card.preprocessing, plan)),
        synthetic=compiled.synthetic,
        preview=image_set.preview_of(compiled.synthetic),
        losses=image_set.losses_plot_of(compiled.synthetic),
        artifacts=(*(load(path) for path in (model, bundle) if sidecar_of(path).exists()), *run.artifacts),
        stages=tuple(run.stages),
    )
    report = output / "report.html"
    report_from_findings(findings, report)
    return Deployment(report, findings)


def _arms(files: Mapping[str, Path], evaluated: Mapping[str, Any]) -> tuple[Arm, ...]:
    arms = []
    for name, path in files.items():
        accuracy = accuracy_from_dict(evaluated[name])
        words = str(read_sidecar(path).metadata.get("calibration", ""))
        arms.append(Arm(name, words, accuracy.evaluation, accuracy.error))
    return tuple(arms)


class _Run:
    """Times stages, and remembers what they made."""

    def __init__(self, step: Step, ended: Callable[[Stage], None]) -> None:
        self.stages: list[Stage] = []
        self.artifacts: list[Artifact] = []
        self._step, self._ended = step, ended

    def make(self, name: str, action: Callable[[Progress], Made]) -> Path:
        """Run a stage that makes an artifact."""
        start = time.monotonic()
        made = action(self._step(name))
        self.artifacts.append(made.artifact)
        self._close(name, start, made.reused)
        return made.artifact.path

    def look(self, name: str, action: Callable[[Progress], Looked]) -> Looked:
        """Run a stage that only looks at what is there."""
        start = time.monotonic()
        seen = action(self._step(name))
        self._close(name, start, False)
        return seen

    def _close(self, name: str, start: float, reused: bool) -> None:
        self.stages.append(Stage(name, time.monotonic() - start, reused))
        self._ended(self.stages[-1])


@dataclass(frozen=True)
class _Compiled:
    """What stands when the last calibration image has been seen, and no real one."""

    synthetic: Path
    fp32: Path
    int8: Path
    int8_half: Path
    engine: Path | None
    not_run: str


def _compile(run: _Run, model: Path, card: ModelCard, bundle: Path, output: Path, plan: Plan) -> _Compiled:
    request = Request(plan.calibration_images, steps=plan.steps, seed=plan.seed)
    known = localizer_teacher(model)
    synthetic = run.make(
        "synthetic images",
        lambda progress: stages.synthetic(known, bundle, output / "synthetic", request, progress=progress),
    )
    fp32 = run.make("export", lambda progress: stages.float_onnx(model, output / "model.onnx"))
    source = replace(calibration.folder(synthetic), description=f"{plan.calibration_images} synthetic images")
    int8 = _quantized(run, fp32, source, output / "model.int8.onnx", plan)
    fp16 = run.make(
        "export, FP16", lambda progress: stages.float_onnx(model, output / "model.fp16.onnx", precision="fp16")
    )
    int8_half = _quantized(run, fp16, source, output / "model.fp16.int8.onnx", plan, "quantize, FP16 base,")
    engine, not_run = _engine(run, card, int8_half, output / "model.int8.engine", plan)
    return _Compiled(synthetic, fp32, int8, int8_half, engine, not_run)


def _quantized(
    run: _Run, model: Path, source: CalibrationSource, output: Path, plan: Plan, stage: str = "quantize"
) -> Path:
    return run.make(
        f"{stage} on {source.description}",
        lambda progress: quantization.int8_onnx(model, source, output, method=plan.method, progress=progress),
    )


def _engine(run: _Run, card: ModelCard, int8: Path, output: Path, plan: Plan) -> tuple[Path | None, str]:
    """The engine, and why it cannot run here; without its builder no engine, and the reason."""
    builder = backend(ENGINE_BACKEND)
    availability = builder.availability()
    if not availability.build:
        return None, availability.reason
    options = BuildOptions(targets=plan.targets, metadata=card.to_metadata())
    engine = run.make("build engine", lambda progress: Made(*build(int8, ENGINE_BACKEND, output, options, progress)))
    return engine, "" if availability.run else availability.reason


def _latency(compiled: _Compiled, card: ModelCard, plan: Plan, output: Path, progress: Progress) -> Made:
    """FP32 against INT8 in ONNX Runtime, and the engine where it runs; fed with synthetic images."""
    parameters = {"batch_sizes": list(plan.batch_sizes), "settings": asdict(plan.settings)}
    files = {FP32: compiled.fp32, FDDA: compiled.int8}
    if compiled.engine and not compiled.not_run:
        files["engine"] = compiled.engine

    def measure() -> dict[str, Any]:
        window = card.preprocessing
        count = max(plan.batch_sizes) * FEEDS
        images = window.normalize(image_set.read(compiled.synthetic, window.image_size, window.crop, limit=count))
        with ExitStack() as stack:
            sessions = {name: stack.enter_context(open_engine(path)) for name, path in files.items()}
            return benchmark(sessions, feeds_from_images(images, plan.batch_sizes), plan.settings, progress).as_dict()

    inputs = {**files, "images": compiled.synthetic}
    return _noted(output, "benchmark", parameters, inputs, code_version("engines"), measure)


def _evaluation(arms: Mapping[str, Path], card: ModelCard, plan: Plan, output: Path, progress: Progress) -> Made:
    """Metrics of every arm on the same held-out images."""
    window = card.preprocessing
    parameters = {"data": plan.data, "images": plan.test_images, "arms": list(arms)}

    def measure() -> dict[str, Any]:
        held_out = open_data(plan.data, "test", window, plan.test_images)
        with ExitStack() as stack:
            localizers = {
                name: localizer_from_session(stack.enter_context(open_engine(path)), str(path))
                for name, path in arms.items()
            }
            return {name: found.as_dict() for name, found in accuracies(localizers, held_out, progress).items()}

    counting = ("toolchain/evaluation.py", "toolchain/curve.py", "toolchain/protocols.py", "toolchain/boxes.py")
    code = code_version("engines", "toolchain/data", *counting)
    return _noted(output, "evaluation", parameters, {**arms, **files_of(plan.data, window)}, code, measure)


def _noted(
    output: Path,
    kind: str,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, Path],
    code: str,
    measure: Callable[[], dict[str, Any]],
) -> Made:
    """A measurement as an artifact: JSON, taken again only where something it depends on changed."""
    if found := reusable(output, kind, parameters=parameters, inputs=inputs, code=code):
        return Made(found, True)
    record = measure()
    with writing(output) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    return Made(seal(output, kind, parameters=parameters, inputs=inputs, code=code), False)


def _examples(compiled: _Compiled, window: Preprocessing, plan: Plan) -> tuple[Example, ...]:
    """Held-out images at even distances: nobody chose them."""
    held_out = open_data(plan.data, "test", window, plan.test_images)
    # One further each time, or a data set that cycles through its classes would show one of them only.
    picked = {(k * len(held_out) // EXAMPLES + k) % len(held_out) for k in range(EXAMPLES)}
    with open_localizer(compiled.fp32) as fp32, open_localizer(compiled.int8) as int8:
        return tuple(_example(held_out[index], held_out.class_names, fp32, int8) for index in sorted(picked))


def _example(sample: Sample, class_names: Sequence[str], fp32: Localizer, int8: Localizer) -> Example:
    before, after = localize_crop(fp32, sample.image), localize_crop(int8, sample.image)
    return Example(
        name=sample.name,
        image=sample.image,
        truth=(class_names[sample.label], sample.box),
        fp32=(before.class_name, before.box, before.map),
        int8=(after.class_name, after.box, after.map),
    )


def _read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record
