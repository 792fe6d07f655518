"""The training loop: AdamW, warm-up and cosine, seeded, resumable after any epoch."""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolchain.artifacts import writing
from toolchain.errors import TrainingError, UsageError
from toolchain.model.lctr import Lctr
from toolchain.progress import Progress, silent
from toolchain.training.batches import Batches

DEAD_ROUTING = 1e-3
"""Mean routing weight under which CDM's kernels no longer get a gradient."""

ROUTING_PATH = "conv3x3.", "CDM._routing_fn_two."
"""Parameters that act on the logits through the routing alone."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: passes over the training images.
        learning_rate: at the end of the warm-up, for everything but the routing path.
        routing_rate: factor on the learning rate of conv3x3 and both routing layers. At the full rate Adam drives the
            routing's sigmoid to 0 within a few steps on strong features, and nothing brings it back.
        weight_decay: AdamW's, on matrices only (not on biases, norms and embeddings).
        warmup_epochs: linear warm-up; may be a fraction of an epoch.
        label_smoothing: of the cross-entropy.
        seed: of order, augmentation and drop path.
        bf16: compute in bfloat16 where torch's autocast deems it safe; weights and loss stay float32.
    """

    epochs: int
    learning_rate: float
    routing_rate: float = 0.01
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0
    bf16: bool = True

    def rate(self, epochs_done: float) -> float:
        """Factor on the learning rate: linear warm-up, then cosine to a hundredth."""
        if epochs_done < self.warmup_epochs:
            return epochs_done / self.warmup_epochs
        progress = (epochs_done - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class EpochLog:
    """Means over one epoch. Accuracy is on mixed, augmented training images: lower than on plain ones."""

    epoch: int
    loss: float
    accuracy: float
    routing: float
    seconds: float


def train(
    model: Lctr,
    batches: Batches,
    schedule: Schedule,
    *,
    state: Path,
    identity: str,
    progress: Progress = silent,
) -> list[EpochLog]:
    """Train the parameters that require a gradient, in place.

    After each epoch everything needed to go on is written to `state`; a run that finds a state of the same
    `identity` and schedule continues from it and ends with the same weights as one that was never interrupted.

    Raises:
        TrainingError: the loss is no longer finite, or the routing died.
        UsageError: `state` belongs to another run.
    """
    optimizer = torch.optim.AdamW(_parameter_groups(model, schedule), lr=schedule.learning_rate)
    logs = _resume(state, model, optimizer, schedule, identity) if state.exists() else []
    for epoch in range(len(logs), schedule.epochs):
        # One stream per epoch, for torch's own dropout too: an interrupted run resumes into the same numbers.
        torch.manual_seed(schedule.seed * 100_003 + epoch)
        generator = torch.Generator().manual_seed(schedule.seed * 100_003 + epoch)
        logs.append(_epoch(model, batches, optimizer, schedule, epoch, generator, progress))
        _save_state(state, model, optimizer, schedule, identity, logs)
    model.eval()
    return logs


def _epoch(
    model: Lctr,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    epoch: int,
    generator: torch.Generator,
    progress: Progress,
) -> EpochLog:
    model.train()
    start = time.monotonic()
    loss_sum = correct = seen = routing_sum = 0.0
    precision = torch.autocast(model.cls_token.device.type, torch.bfloat16, enabled=schedule.bf16)
    for step, batch in enumerate(batches.epoch(model, precision, generator)):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * group["factor"] * schedule.rate(epoch + (step + 1) / batches.steps)
        with precision:
            classified = model.classify(batch.cues)
        logits = classified.logits.float()
        loss = F.cross_entropy(logits, batch.targets, label_smoothing=schedule.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        routing = float(classified.routing.detach().mean())
        _check_alive(float(loss.detach()), routing, epoch, step, schedule)
        loss_sum += float(loss.detach()) * len(batch.labels)
        correct += float((logits.detach().argmax(1) == batch.labels).sum())
        routing_sum += routing * len(batch.labels)
        seen += len(batch.labels)
        done = epoch * batches.steps + step + 1
        progress(done, schedule.epochs * batches.steps, f"loss {loss_sum / seen:.3f} accuracy {correct / seen:.1%}")
    return EpochLog(epoch, loss_sum / seen, correct / seen, routing_sum / seen, time.monotonic() - start)


def _check_alive(loss: float, routing: float, epoch: int, step: int, schedule: Schedule) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} in epoch {epoch}, step {step}: lower --learning-rate ({schedule.learning_rate:g})."
        )
    if routing < DEAD_ROUTING:
        raise TrainingError(
            f"CDM's routing died in epoch {epoch}, step {step}: its mean weight is {routing:.1e} and the kernels get "
            f"no gradient; lower --routing-rate ({schedule.routing_rate:g}) or --learning-rate "
            f"({schedule.learning_rate:g})."
        )


def _parameter_groups(model: nn.Module, schedule: Schedule) -> list[dict[str, object]]:
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name not in ("cls_token", "pos_embed")
            groups.setdefault((decays, name.startswith(ROUTING_PATH)), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": schedule.weight_decay if decays else 0.0,
            "factor": schedule.routing_rate if routes else 1.0,
        }
        for (decays, routes), parameters in groups.items()
    ]


def _save_state(
    state: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    identity: str,
    logs: list[EpochLog],
) -> None:
    with writing(state) as temporary:
        torch.save(
            {
                "run": _run(schedule, identity),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "logs": [asdict(log) for log in logs],
            },
            temporary,
        )


def _resume(
    state: Path, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule, identity: str
) -> list[EpochLog]:
    advice = "remove it to start over, or choose another output path"
    try:
        saved = torch.load(state, map_location="cpu", weights_only=True)
        run, weights, moments, logs = (saved[key] for key in ("run", "model", "optimizer", "logs"))
    except Exception as error:  # torch.load has no exception of its own: zip, pickle, EOF and runtime errors all occur
        raise UsageError(f"{state} is no training state ({type(error).__name__}): {advice}.") from error
    if run != _run(schedule, identity):
        raise UsageError(f"{state} belongs to a run with other options or data: {advice}.")
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    return [EpochLog(**log) for log in logs]


def _run(schedule: Schedule, identity: str) -> str:
    return json.dumps([asdict(schedule), identity], sort_keys=True)
