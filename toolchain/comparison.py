"""Localizers side by side: latency on the same batches, metrics on the same images, and the bounds a user may set."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engines.backend import Feeds
from toolchain.data.dataset import DataSet
from toolchain.errors import GateFailed
from toolchain.evaluation import Evaluation, Floats, OutputError, collect_outputs, evaluate, output_error
from toolchain.localizer import Localizer
from toolchain.progress import Progress, silent

FEEDS = 4
"""Different batches that a benchmark rotates through, so that no cache remembers the answer."""


@dataclass(frozen=True)
class Accuracy:
    """Metrics of one localizer; `error` is the distance of its outputs from the first one's, None for that."""

    evaluation: Evaluation
    error: OutputError | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"evaluation": asdict(self.evaluation), "error": asdict(self.error) if self.error else None}


def accuracy_from_dict(record: Mapping[str, Any]) -> Accuracy:
    """The inverse of `Accuracy.as_dict`."""
    error = record["error"]
    return Accuracy(Evaluation(**record["evaluation"]), OutputError(**error) if error else None)


def accuracies(localizers: Mapping[str, Localizer], data: DataSet, progress: Progress = silent) -> dict[str, Accuracy]:
    """Metrics of each localizer, and how far its outputs are from those of the first.

    All read boxes at the first one's tau: it was chosen on validation images for that model, and the others stand for
    it.
    """
    first = next(iter(localizers.values()))
    outputs = collect_outputs(
        [localizer.predict for localizer in localizers.values()], data, first.card.preprocessing, progress=progress
    )
    tau = first.card.tau
    return {
        name: Accuracy(evaluate(found, tau), output_error(found, outputs[0], tau) if found is not outputs[0] else None)
        for name, found in zip(localizers, outputs, strict=True)
    }


def feeds_from_images(images: Floats, sizes: Sequence[int]) -> list[list[Feeds]]:
    """Batches of each size, filled from normalized images (N, 3, S, S) in turn."""
    endless = np.arange(FEEDS * max(sizes)) % len(images)
    return [[{"image": images[endless[k * size : (k + 1) * size]]} for k in range(FEEDS)] for size in sizes]


def check_drop(accuracy: Mapping[str, Accuracy], max_drop: float) -> None:
    """Hold every localizer against the first.

    Raises:
        GateFailed: one loses more than `max_drop` points of GT-Known Loc or Top-1 Loc.
    """
    reference, *others = accuracy.items()
    for name, found in others:
        for metric in ("gt_known_loc", "top1_loc"):
            before, after = getattr(reference[1].evaluation, metric), getattr(found.evaluation, metric)
            # A figure that is not a number must not pass.
            if not before - after <= max_drop + 1e-9:
                raise GateFailed(
                    f"{name} has {metric} {after:.2f} and {reference[0]} {before:.2f}: that drop is over --max-drop "
                    f"{max_drop:g}; calibrate it on more images, or raise the bound."
                )


def check_p99(latency: Mapping[str, Any], max_p99: float) -> None:
    """Hold every engine but the baseline against a latency in milliseconds, at its smallest batch size.

    Raises:
        GateFailed: the 99th percentile of one is over it.
    """
    size = min(latency["batches"], key=int)
    row = latency["batches"][size]
    judged = {name: found for name, found in row.items() if name != latency["baseline"]} or row
    for name, found in judged.items():
        p99 = found["timings"]["p99"]
        if not p99 <= max_p99:
            raise GateFailed(
                f"{name} has a p99 of {p99:.2f} ms at batch {size}: that is over --max-p99 {max_p99:g} ms; choose a "
                "faster engine, or raise the bound."
            )
