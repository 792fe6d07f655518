"""What is known of each epoch, as a table beside the checkpoint and as curves."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tensorboardX import SummaryWriter

from toolchain.artifacts import writing


@dataclass(frozen=True)
class EpochLog:
    """Means over one epoch, and what the validation images said after it.

    Attributes:
        epoch: from 0.
        loss: cross-entropy.
        accuracy: on mixed, augmented training images: lower than on plain ones.
        routing: mean routing weight of CDM.
        learning_rate: of the head, in the last step.
        seconds: that training took.
        top1: percent of the validation images; None: not evaluated after this epoch, as for all below.
        gt_known_loc: percent; None too where the images have no boxes.
        top1_loc: percent, likewise.
        tau: threshold that both are best at.
    """

    epoch: int
    loss: float
    accuracy: float
    routing: float
    learning_rate: float
    seconds: float
    top1: float | None = None
    gt_known_loc: float | None = None
    top1_loc: float | None = None
    tau: float | None = None


def log_of(output: Path) -> Path:
    """Where the table of a checkpoint's training stands."""
    return output.with_name(f"{output.stem}.log.csv")


def write_csv(logs: Sequence[EpochLog], path: Path) -> None:
    """One line per epoch; what is not known is empty."""
    with writing(path) as temporary, temporary.open("w", newline="") as stream:
        table = csv.DictWriter(stream, [field.name for field in fields(EpochLog)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(log) for log in logs)


class Curves:
    """TensorBoard's event files. A continued run writes all of its epochs again, in place of what it wrote before.

    Args:
        folder: where the files are written; None: nowhere.
    """

    def __init__(self, folder: Path | None) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=0) if folder else None
        self._written = 0

    def write(self, logs: Sequence[EpochLog]) -> None:
        """Everything known of the epochs that are not written yet."""
        if self._writer is None:
            return
        for log in logs[self._written :]:
            for name, value in asdict(log).items():
                if name != "epoch" and value is not None:
                    self._writer.add_scalar(name, value, log.epoch)
        self._written = len(logs)

    def close(self) -> None:
        """Wait until everything is on disk."""
        if self._writer is not None:
            self._writer.close()
