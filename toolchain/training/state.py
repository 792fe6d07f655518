"""Everything a training needs to go on after it was killed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from toolchain.artifacts import writing
from toolchain.errors import UsageError
from toolchain.model.lctr import Lctr
from toolchain.training.log import EpochLog

PARTS = "run", "model", "optimizer", "average", "logs", "tally", "best"


@dataclass
class Tally:
    """Sums over the images of the epoch under way.

    Attributes:
        steps: that are done.
        images: that were seen.
        loss, correct, routing: sums over those images.
        seconds: that they took.
    """

    steps: int = 0
    images: float = 0.0
    loss: float = 0.0
    correct: float = 0.0
    routing: float = 0.0
    seconds: float = 0.0


@dataclass
class Best:
    """The weights that did best on the validation images, and how well."""

    score: float
    weights: dict[str, Tensor]


@dataclass
class TrainingState:
    """A training between two steps: with the data and the options, all that the rest of it depends on.

    Attributes:
        model: weights.
        optimizer: moments and steps.
        average: moving average of the weights; None: there is none.
        logs: of each finished epoch.
        tally: of the epoch under way.
        best: None where nothing was evaluated yet, or the last weights are kept.
    """

    model: Lctr
    optimizer: AdamW
    average: AveragedModel | None
    logs: list[EpochLog] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    best: Best | None = None

    @property
    def result(self) -> Lctr:
        """The weights that are evaluated: their moving average where there is one."""
        averaged: Lctr = self.average.module if self.average is not None else self.model  # type: ignore[assignment]
        return averaged

    def save(self, path: Path, run: str) -> None:
        """Write it, whole or not at all; `run` says what it depends on besides."""
        record = {
            "run": run,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "logs": [asdict(log) for log in self.logs],
            "tally": asdict(self.tally),
            "best": {"score": self.best.score, "weights": self.best.weights} if self.best else None,
        }
        with writing(path) as temporary:
            torch.save(record, temporary)

    def restore(self, record: Mapping[str, Any]) -> None:
        """Go back to what `read` gives."""
        self.model.load_state_dict(record["model"])
        self.optimizer.load_state_dict(record["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(record["average"])
        self.logs = [EpochLog(**log) for log in record["logs"]]
        self.tally = Tally(**record["tally"])
        self.best = Best(**record["best"]) if record["best"] else None


def read(path: Path, run: str) -> Mapping[str, Any]:
    """What `TrainingState.save` wrote.

    Raises:
        UsageError: the file is no state, or one of another run.
    """
    advice = "remove it to start over, or choose another output path"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        record = {part: saved[part] for part in PARTS}
    except Exception as error:  # torch.load has no exception of its own: zip, pickle, EOF and runtime errors all occur
        raise UsageError(f"{path} is no training state ({type(error).__name__}): {advice}.") from error
    if record["run"] != run:
        raise UsageError(f"{path} belongs to a run with other options or data: {advice}.")
    return record
