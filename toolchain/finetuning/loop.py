"""The tuning loop: batches of images, a teacher that stays, a student that follows; resumable after any epoch."""

import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from calib.teacher import logits_of
from toolchain.artifacts import writing
from toolchain.errors import DataError, ModelError, TrainingError, UsageError
from toolchain.finetuning.images import Images
from toolchain.finetuning.layers import Phase
from toolchain.finetuning.loss import distillation
from toolchain.finetuning.student import Student
from toolchain.progress import Progress, silent

Source = Images | Callable[[int], Images]
"""The images of every epoch, or epoch -> its images, where a generator makes new ones each time."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; the values that are given are published (spec/fdda.md), but for the epochs.

    Attributes:
        epochs: passes over the synthetic images; a published one is 200 steps.
        learning_rate: at the start; falls to 0 along a cosine.
        momentum: Nesterov's.
        weight_decay: of everything but learned scales.
        batch_size: synthetic images in a step, and as many real ones beside them where there are any.
        range_epochs: during which ranges are observed, on synthetic images alone; frozen afterwards.
        range_decay: of their moving average.
        temperature: that the answers are compared at.
        distillation: weight of that comparison, alpha.
        learn_scales: tune the activations' scales once they are observed, instead of freezing them.
        seed: of the order of the images.
    """

    epochs: int = 20
    learning_rate: float = 1e-6
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_size: int = 16
    range_epochs: int = 4
    range_decay: float = 0.9
    temperature: float = 20.0
    distillation: float = 20.0
    learn_scales: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("range_epochs", 1), ("learning_rate", 0.0)):
            if not getattr(self, name) >= least:
                raise UsageError(
                    f"--{name.replace('_', '-')} {getattr(self, name):g} cannot be: give at least {least}."
                )

    def rate(self, epoch: int) -> float:
        """Learning rate in an epoch."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


@dataclass(frozen=True)
class EpochLog:
    """Means over the steps of one epoch; its line in the log.

    Attributes:
        epoch: from 0.
        loss: as it is minimized.
        cross_entropy: its first part.
        divergence: its second, without its weight.
        agreement: share of the images on which student and teacher predict the same class.
        learning_rate: in this epoch.
        seconds: that it took.
    """

    epoch: int
    loss: float
    cross_entropy: float
    divergence: float
    agreement: float
    learning_rate: float
    seconds: float


EpochEnd = Callable[[Sequence[EpochLog]], None]


def finetune(
    student: Student,
    teacher: nn.Module,
    synthetic: Source,
    schedule: Schedule,
    *,
    real: Images | None = None,
    state: Path | None = None,
    identity: str = "",
    epoch_end: EpochEnd | None = None,
    progress: Progress = silent,
) -> tuple[EpochLog, ...]:
    """Tune the student in place, on its own device.

    A learning rate of 0 tunes nothing, and leaves a student with observed ranges: what calibration alone gives.

    Args:
        student: of `student_from_float`.
        teacher: the float network, on the same device; put into evaluation mode.
        synthetic: images that ranges and gradients come from.
        schedule: how.
        real: images that gradients come from, too.
        state: where what is needed to go on is kept after each epoch; the caller removes it. None: nowhere.
        identity: of what the result depends on; a state of another one is refused.
        epoch_end: called with all logs so far.
        progress: called after each step.

    Raises:
        DataError: no image, or labels that the network has no class for.
        ModelError: the float network holds what no range covers.
        TrainingError: the student is no longer finite.
        UsageError: `state` belongs to another run.
    """
    loop = _Loop(student, teacher.eval(), synthetic, real, schedule, progress)
    run = repr((schedule, identity))
    if state is not None and state.exists():
        loop.restore(_read(state, run))
    for epoch in range(len(loop.logs), schedule.epochs):
        loop.epoch(epoch)
        if epoch_end:
            epoch_end(loop.logs)
        if state is not None:
            with writing(state) as temporary:
                torch.save({"run": run, **loop.record()}, temporary)
    student.learn_scales(schedule.learn_scales)
    return tuple(loop.logs)


@torch.no_grad()
def measure(student: Student, images: Tensor, batch: int = 32) -> Tensor:
    """The student's logits (N, C), and in its quantizers the error that they make on these images (N, 3, S, S)."""
    student.phase(Phase.MEASURE)
    device = next(student.parameters()).device
    logits = [student(some.to(device)).cpu() for some in images.split(batch)]
    student.phase(Phase.PLAIN)
    return torch.cat(logits)


def write_log(logs: Sequence[EpochLog], path: Path) -> None:
    """One line per epoch."""
    with writing(path) as temporary, temporary.open("w", newline="") as stream:
        table = csv.DictWriter(stream, [field.name for field in fields(EpochLog)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(log) for log in logs)


@dataclass(frozen=True)
class _Taught:
    """Images with labels and the teacher's logits (N, C)."""

    pixels: Tensor
    labels: Tensor
    logits: Tensor

    def batch(self, rows: Tensor, device: torch.device) -> "_Taught":
        return _Taught(self.pixels[rows].to(device), self.labels[rows].to(device), self.logits[rows].to(device))


class _Loop:
    """One tuning: its state, and how an epoch changes it."""

    def __init__(
        self,
        student: Student,
        teacher: nn.Module,
        synthetic: Source,
        real: Images | None,
        schedule: Schedule,
        progress: Progress,
    ) -> None:
        self._student, self._teacher, self._schedule, self._progress = student, teacher, schedule, progress
        self._device = next(student.parameters()).device
        scales = [quantizer.scale for quantizer in student.quantizers]
        apart = {id(scale) for scale in scales}
        others = [p for p in student.parameters() if id(p) not in apart]
        # A scale that decays would only clip more.
        groups: list[dict[str, Any]] = [{"params": others}, {"params": scales, "weight_decay": 0.0}]
        momentum, decay = schedule.momentum, schedule.weight_decay
        self._optimizer = SGD(groups, schedule.learning_rate, momentum, weight_decay=decay, nesterov=momentum > 0)
        self._made = None if isinstance(synthetic, Images) else synthetic
        self._synthetic = self._taught(synthetic) if isinstance(synthetic, Images) else None
        self._real = self._taught(real) if real else None
        self.logs: list[EpochLog] = []

    def epoch(self, epoch: int) -> None:
        """One pass over the synthetic images."""
        schedule, started = self._schedule, time.monotonic()
        if self._made is not None:
            self._synthetic = self._taught(self._made(epoch))
        assert self._synthetic is not None
        observes = epoch < schedule.range_epochs
        self._student.learn_scales(schedule.learn_scales and not observes)
        for group in self._optimizer.param_groups:
            group["lr"] = schedule.rate(epoch)
        generator = torch.Generator().manual_seed(schedule.seed * 100_003 + epoch)
        passes = torch.randperm(len(self._synthetic.labels), generator=generator).split(schedule.batch_size)
        beside = self._rows_of_real(generator)
        sums = torch.zeros(5, dtype=torch.float64)
        for step, rows in enumerate(passes, 1):
            try:
                sums += self._step(rows, beside, observes)
            except ModelError as error:
                # The first step sees what the float model makes of images, all others what the tuning made of it.
                if epoch == 0 and step == 1:
                    raise
                raise self._diverged(epoch, step) from error
            if not math.isfinite(float(sums[1])):
                raise self._diverged(epoch, step)
            note = f"loss {sums[1] / sums[0]:.3f} agreement {sums[4] / sums[0]:.1%}"
            self._progress(epoch * len(passes) + step, schedule.epochs * len(passes), note)
        images, *means = sums.tolist()
        loss, entropy, divergence, agreement = (value / images for value in means)
        rate, seconds = schedule.rate(epoch), time.monotonic() - started
        self.logs.append(EpochLog(epoch, loss, entropy, divergence, agreement, rate, seconds))

    def record(self) -> dict[str, Any]:
        """What the rest depends on."""
        return {
            "student": self._student.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "logs": [asdict(log) for log in self.logs],
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Go back to what `record` gave."""
        self._student.load_state_dict(record["student"])
        self._optimizer.load_state_dict(record["optimizer"])
        self.logs = [EpochLog(**log) for log in record["logs"]]

    def _step(self, rows: Tensor, beside: Iterator[Tensor], observes: bool) -> Tensor:
        """One step; sums over its images: images, loss, cross-entropy, divergence, agreement (5,) float64."""
        assert self._synthetic is not None
        parts = [(self._synthetic.batch(rows, self._device), observes)]
        if self._real:
            parts.append((self._real.batch(next(beside), self._device), False))
        images = sum(len(part.labels) for part, _ in parts)
        sums = torch.zeros(5, dtype=torch.float64)
        self._optimizer.zero_grad(set_to_none=True)
        for part, watched in parts:
            self._student.phase(Phase.OBSERVE if watched else Phase.PLAIN, self._schedule.range_decay)
            logits = self._student(part.pixels)
            temperature, weight = self._schedule.temperature, self._schedule.distillation
            loss = distillation(logits, part.logits, part.labels, temperature=temperature, weight=weight)
            # Nothing is drawn and no statistics are taken: two passes give the gradient of one over both.
            torch.autograd.backward(loss.total * (len(part.labels) / images))
            agreed = (logits.argmax(1) == part.logits.argmax(1)).double().mean()
            means = torch.stack([torch.ones_like(agreed), *(value.detach().double() for value in loss), agreed])
            sums += means.cpu() * len(part.labels)
        self._student.phase(Phase.PLAIN)
        self._optimizer.step()
        return sums

    def _diverged(self, epoch: int, step: int) -> TrainingError:
        rate = self._schedule.learning_rate
        return TrainingError(
            f"the student is no longer finite in epoch {epoch}, step {step}: lower --learning-rate ({rate:g})."
        )

    def _rows_of_real(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Rows of the real images for one step after the other, in a new order each time they are through."""
        while self._real:
            yield from torch.randperm(len(self._real.labels), generator=generator).split(self._schedule.batch_size)

    @torch.no_grad()
    def _taught(self, images: Images) -> _Taught:
        if not len(images.pixels):
            raise DataError("There is no image to tune on: give at least one.")
        logits = torch.cat([logits_of(self._teacher, some.to(self._device)).cpu() for some in images.pixels.split(32)])
        labels = logits.argmax(1) if images.labels is None else images.labels
        if len(labels) != len(logits) or int(labels.max()) >= logits.shape[1] or int(labels.min()) < 0:
            raise DataError(
                f"{len(labels)} labels from {int(labels.min())} to {int(labels.max())} do not fit {len(logits)} images "
                f"and {logits.shape[1]} classes: give images of this network's classes."
            )
        return _Taught(images.pixels, labels, logits)


def _read(path: Path, run: str) -> dict[str, Any]:
    advice = "remove it to start over, or choose another output path"
    try:
        record: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        belongs = record.pop("run")
    except Exception as error:  # torch raises whatever unpickling raises
        raise UsageError(f"{path} is no state of a fine-tuning: {advice}.") from error
    if belongs != run:
        raise UsageError(f"{path} belongs to another fine-tuning: {advice}.")
    return record
