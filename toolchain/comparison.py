"""Localizers side by side: the same batches for latency, the same images for metrics."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.backend import Feeds
from engines.bootstrap import Interval
from toolchain.curve import Part, curves_from_parts
from toolchain.data.dataset import DataSet
from toolchain.evaluation import Evaluation, Floats, OutputError, Outputs, collect_outputs, evaluate, output_error
from toolchain.localizer import Localizer
from toolchain.progress import Progress, silent
from toolchain.protocols import LCTR

FEEDS = 4
"""Different batches that a benchmark rotates through, so that no cache remembers the answer."""


METRICS = ("gt_known_loc", "top1_loc")
"""What `--max-drop` bounds."""
NORMAL_95 = 1.96
"""Standard errors on either side of a figure that make 95 %."""


@dataclass(frozen=True)
class Drop:
    """What a localizer loses of a metric against another, image by image.

    Attributes:
        lost: images that only the other gets right.
        gained: images that only this one gets right.
        images: all.
    """

    lost: int
    gained: int
    images: int

    @property
    def points(self) -> Interval:
        """Percent lost; negative: gained. With the interval of a difference of paired proportions (Wald's).

        Both saw the same images, so only those count that one of them gets right and the other does not: standard
        error `sqrt(lost + gained - (lost - gained)^2 / n) / n` (Agresti, Categorical Data Analysis, section 11.1).
        """
        difference = self.lost - self.gained
        value = 100 * difference / self.images
        spread = self.lost + self.gained - difference**2 / self.images
        error = 100 * math.sqrt(spread) / self.images
        return Interval(value, value - NORMAL_95 * error, value + NORMAL_95 * error)


@dataclass(frozen=True)
class Accuracy:
    """Metrics of one localizer.

    Attributes:
        evaluation: the metrics.
        error: distance of its outputs from the first localizer's; None for that.
        drops: metric -> what it loses against the first localizer; empty for that.
    """

    evaluation: Evaluation
    error: OutputError | None
    drops: Mapping[str, Drop] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "evaluation": asdict(self.evaluation),
            "error": asdict(self.error) if self.error else None,
            "drops": {metric: asdict(drop) for metric, drop in self.drops.items()},
        }


def accuracy_from_dict(record: Mapping[str, Any]) -> Accuracy:
    """The inverse of `Accuracy.as_dict`."""
    error = record["error"]
    drops = {metric: Drop(**drop) for metric, drop in record["drops"].items()}
    return Accuracy(Evaluation(**record["evaluation"]), OutputError(**error) if error else None, drops)


def accuracies(localizers: Mapping[str, Localizer], data: DataSet, progress: Progress = silent) -> dict[str, Accuracy]:
    """Metrics of each localizer, and how far its outputs are from those of the first.

    All read boxes at the first one's tau: it was chosen on validation images for that model, and the others stand for
    it.
    """
    first = next(iter(localizers.values()))
    outputs = collect_outputs(
        [localizer.predict for localizer in localizers.values()], data, first.card.preprocessing, progress=progress
    )
    return {name: _accuracy(found, outputs[0], first.card.tau) for name, found in zip(localizers, outputs, strict=True)}


def feeds_from_images(images: Floats, sizes: Sequence[int]) -> list[list[Feeds]]:
    """Batches of each size, filled from normalized images (N, 3, S, S) in turn."""
    endless = np.arange(FEEDS * max(sizes)) % len(images)
    return [[{"image": images[endless[k * size : (k + 1) * size]]} for k in range(FEEDS)] for size in sizes]


def _accuracy(found: Outputs, reference: Outputs, tau: float) -> Accuracy:
    if found is reference:
        return Accuracy(evaluate(found, tau), None)
    return Accuracy(evaluate(found, tau), output_error(found, reference, tau), _drops(found, reference, tau))


def _drops(found: Outputs, reference: Outputs, tau: float) -> dict[str, Drop]:
    mine, theirs = _right(found, tau), _right(reference, tau)
    return {
        metric: Drop(
            lost=int((theirs[metric] & ~mine[metric]).sum()),
            gained=int((mine[metric] & ~theirs[metric]).sum()),
            images=len(mine[metric]),
        )
        for metric in METRICS
    }


def _right(outputs: Outputs, tau: float) -> dict[str, NDArray[np.bool_]]:
    """Metric -> which images are right by it (N,)."""
    taus = np.array([tau])
    single = [
        curves_from_parts(
            LCTR,
            [Part(outputs.logits[k : k + 1], outputs.maps[k : k + 1], outputs.labels[k : k + 1], [(box,)])],
            outputs.image_size,
            taus,
        )
        for k, box in enumerate(outputs.boxes)
    ]
    return {metric: np.array([curves.at(metric, tau) > 0 for curves in single]) for metric in METRICS}
