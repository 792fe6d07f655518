"""The training loop: seeded, on one process or many, resumable after any step."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from toolchain.errors import TrainingError
from toolchain.model.lctr import Lctr
from toolchain.progress import Progress, silent
from toolchain.training.batches import Batch, Batches, Share
from toolchain.training.learner import Learner
from toolchain.training.log import EpochLog
from toolchain.training.optimizer import adamw, set_rate
from toolchain.training.recipes import BEST, Schedule
from toolchain.training.state import Best, Tally, TrainingState, read
from toolchain.training.validation import Validated

DEAD_ROUTING = 1e-3
"""Mean routing weight under which CDM's kernels no longer get a gradient."""
LARGEST_NORM = 1.0
"""That gradients are clipped to."""
SAVE_SECONDS = 300.0
"""Time from one saved state to the next within an epoch."""

Evaluate = Callable[[Lctr], Validated]
EpochEnd = Callable[[list[EpochLog]], None]


def train(
    fabric: Fabric,
    model: Lctr,
    batches: Batches,
    schedule: Schedule,
    *,
    state: Path,
    identity: str,
    frozen_blocks: int = 0,
    evaluate: Evaluate | None = None,
    epoch_end: EpochEnd | None = None,
    save_seconds: float = SAVE_SECONDS,
    progress: Progress = silent,
) -> list[EpochLog]:
    """Train the parameters that require a gradient, in place; the model ends as what `schedule.keep` says.

    After each epoch, and now and then within one, everything needed to go on is written to `state`. A run that finds a
    state of the same `identity` and schedule continues from it and ends with the same weights and the same logs as one
    that was never interrupted: what a step does depends on the state and on the step's number alone.

    Args:
        fabric: launched; the model is on its device.
        model: to train.
        batches: what it is trained on.
        schedule: how.
        state: where the state is kept; the caller removes it.
        identity: of everything else that the result depends on.
        frozen_blocks: that the inputs have passed.
        evaluate: called by the first process as often as `schedule.evaluate_every` says, and after the last epoch.
        epoch_end: called by the first process with all logs so far, before the state is written.
        save_seconds: time from one saved state to the next within an epoch.
        progress: called after each step.

    Raises:
        TrainingError: the loss is no longer finite, or the routing died.
        UsageError: `state` belongs to another run, or the batch cannot be shared by the processes.
    """
    loop = _Loop(fabric, model, batches, schedule, frozen_blocks, progress)
    run = json.dumps([asdict(schedule), identity], sort_keys=True)
    # The first process alone reads and writes files: others may not see them.
    record = fabric.broadcast(read(state, run) if fabric.is_global_zero and state.exists() else None)
    if record:
        loop.state.restore(record)
    for epoch in range(len(loop.state.logs), schedule.epochs):
        saved = time.monotonic()
        for _ in loop.steps(epoch):
            if fabric.is_global_zero and time.monotonic() - saved >= save_seconds:
                loop.state.save(state, run)
                saved = time.monotonic()
        loop.end(epoch, evaluate if fabric.is_global_zero else None)
        if fabric.is_global_zero:
            if epoch_end:
                epoch_end(loop.state.logs)
            loop.state.save(state, run)
    model.load_state_dict(loop.state.best.weights if loop.state.best else loop.state.result.state_dict())
    model.eval()
    return loop.state.logs


class _Loop:
    """One training: its state, and how a step changes it."""

    def __init__(
        self,
        fabric: Fabric,
        model: Lctr,
        batches: Batches,
        schedule: Schedule,
        frozen_blocks: int,
        progress: Progress,
    ) -> None:
        self._fabric = fabric
        self._batches = batches
        self._schedule = schedule
        self._progress = progress
        self._share = Share(fabric.global_rank, fabric.world_size, schedule.accumulate)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(schedule.ema)) if schedule.ema else None
        self.state = TrainingState(model, adamw(model, schedule), average)
        self._learner, self._optimizer = fabric.setup(
            Learner(model, frozen_blocks, schedule.bf16), self.state.optimizer
        )

    def steps(self, epoch: int) -> Iterator[int]:
        """Do the steps of an epoch that are not done yet; each is counted in the state when it is yielded."""
        self.state.model.train()
        tally = self.state.tally
        generator = torch.Generator().manual_seed(self._schedule.seed * 100_003 + epoch)
        passes = self._batches.epoch(generator, self._share, tally.steps)
        started = time.monotonic() - tally.seconds
        while tally.steps < self._batches.steps:
            set_rate(self.state.optimizer, self._schedule, epoch + (tally.steps + 1) / self._batches.steps)
            sums = self._step(passes, epoch, tally.steps)
            self._check_alive(sums, epoch, tally.steps)
            _add(tally, sums)
            tally.seconds = time.monotonic() - started
            self._report(epoch)
            yield tally.steps

    def end(self, epoch: int, evaluate: Evaluate | None) -> None:
        """Turn the tally into the log of a finished epoch."""
        tally, schedule = self.state.tally, self._schedule
        rate = schedule.learning_rate * schedule.rate(epoch + 1)
        loss, accuracy, routing = (value / tally.images for value in (tally.loss, tally.correct, tally.routing))
        self.state.tally = Tally()
        found: dict[str, Any] = {}
        if evaluate and schedule.evaluate_every and self._is_due(epoch):
            validated = evaluate(self.state.result)
            found = validated.figures()
            self._keep_best(validated.score)
        self.state.logs.append(EpochLog(epoch, loss, accuracy, routing, rate, tally.seconds, **found))

    def _is_due(self, epoch: int) -> bool:
        return (epoch + 1) % self._schedule.evaluate_every == 0 or epoch + 1 == self._schedule.epochs

    def _keep_best(self, score: float) -> None:
        best = self.state.best
        if self._schedule.keep == BEST and (best is None or score > best.score):
            weights = {name: value.detach().cpu().clone() for name, value in self.state.result.state_dict().items()}
            self.state.best = Best(score, weights)

    def _step(self, passes: Iterator[Batch], epoch: int, step: int) -> Tensor:
        """One optimizer step; sums over the whole batch: images, loss, correct, routing (4,) float64."""
        share = self._share
        sums = torch.zeros(4, dtype=torch.float64)
        self._optimizer.zero_grad(set_to_none=True)
        for turn in range(share.accumulate):
            batch = self._fabric.to_device(next(passes))
            # A stream for each pass, for drop path: no step depends on how many numbers others drew.
            torch.manual_seed(_seed(self._schedule.seed, epoch, step, turn * share.world + share.rank))
            with self._fabric.no_backward_sync(self._learner, enabled=turn + 1 < share.accumulate):
                logits, routing = self._learner(batch.inputs)
                loss = F.cross_entropy(logits, batch.targets, label_smoothing=self._schedule.label_smoothing)
                self._fabric.backward(loss / share.accumulate)
            sums += _sums(batch, logits, loss, routing)
        nn.utils.clip_grad_norm_(self.state.model.parameters(), LARGEST_NORM)
        self._optimizer.step()
        if self.state.average is not None:
            self.state.average.update_parameters(self.state.model)
        return cast(Tensor, self._fabric.all_reduce(sums.to(self._fabric.device), reduce_op="sum")).cpu()

    def _check_alive(self, sums: Tensor, epoch: int, step: int) -> None:
        images, loss, _, routing = sums.tolist()
        schedule = self._schedule
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss / images} in epoch {epoch}, step {step}: lower --learning-rate "
                f"({schedule.learning_rate:g})."
            )
        if routing / images < DEAD_ROUTING:
            raise TrainingError(
                f"CDM's routing died in epoch {epoch}, step {step}: its mean weight is {routing / images:.1e} and the "
                f"kernels get no gradient; lower --routing-rate ({schedule.routing_rate:g}) or --learning-rate "
                f"({schedule.learning_rate:g})."
            )

    def _report(self, epoch: int) -> None:
        tally, steps = self.state.tally, self._batches.steps
        note = f"loss {tally.loss / tally.images:.3f} accuracy {tally.correct / tally.images:.1%}"
        self._progress(epoch * steps + tally.steps, self._schedule.epochs * steps, note)


def _sums(batch: Batch, logits: Tensor, loss: Tensor, routing: Tensor) -> Tensor:
    images = len(batch.labels)
    correct = float((logits.detach().argmax(1) == batch.labels).sum())
    return torch.tensor(
        [images, float(loss.detach()) * images, correct, float(routing.detach().mean()) * images], dtype=torch.float64
    )


def _add(tally: Tally, sums: Tensor) -> None:
    images, loss, correct, routing = sums.tolist()
    tally.steps += 1
    tally.images += images
    tally.loss += loss
    tally.correct += correct
    tally.routing += routing


def _seed(*of: int) -> int:
    """Of the stream of random numbers that belongs to a pass: seed, epoch, step and part of the batch."""
    return int(np.random.SeedSequence(of).generate_state(1, np.uint64)[0])
