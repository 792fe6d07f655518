"""A localizer measured by any of the protocols: every figure with its protocol, its tau, and where that is from."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolchain.card import ModelCard
from toolchain.curve import Curves, Part, curves_from_parts
from toolchain.data.dataset import DataSet, Sample
from toolchain.data.sources import open_data
from toolchain.errors import ModelError, UsageError
from toolchain.evaluation import Classes, PredictClasses, batches, check_classes, check_numbers
from toolchain.localizer import Localizer
from toolchain.preprocessing import Box, Preprocessing
from toolchain.progress import Progress, Step, unwatched
from toolchain.protocols import BEST, MODEL, VAL, Protocol

GIVEN = "given"
"""tau is the user's own."""
ORIGINS = {
    GIVEN: "given by --tau",
    MODEL: "from the model's metadata",
    VAL: "chosen on {images:,} images of val",
    BEST: "best over the evaluated images themselves, as the protocol defines it",
}
"""Where tau comes from, in words."""
BATCH_SIZE = 16


@dataclass(frozen=True)
class Trial:
    """What to measure, and how.

    Attributes:
        data: as for `--data`.
        split: of it that figures are of.
        images: at most so many are read of a split; None: all.
        protocol: by which is counted.
        tau: the threshold, if the user gave one.
        tau_from: where it comes from otherwise, `model`, `val` or `best`; None: as the protocol has it.
        curve: every threshold of the protocol is wanted, not only the one that figures are of.

    Raises:
        UsageError: a tau that is none, or one of an origin that it cannot have.
    """

    data: str
    split: str
    images: int | None
    protocol: Protocol
    tau: float | None = None
    tau_from: str | None = None
    curve: bool = False

    def __post_init__(self) -> None:
        if self.tau is not None and self.tau_from is not None:
            raise UsageError(f"--tau {self.tau:g} and --tau-from {self.tau_from} contradict each other: leave one out.")
        if self.tau is not None and not 0 <= self.tau < 1:
            raise UsageError(f"--tau {self.tau:g} is no share of a map's maximum: give 0 or more, and less than 1.")
        if self.tau_from not in (None, MODEL, VAL, BEST):
            raise UsageError(f"--tau-from {self.tau_from} is unknown: choose one of {MODEL}, {VAL}, {BEST}.")
        if self.origin == BEST and self.protocol.tau_from != BEST:
            raise UsageError(
                f"--tau-from {BEST} reads the boxes of the evaluated images themselves, which protocol "
                f"{self.protocol.name} does not: use --tau-from {VAL}, or protocol maxboxacc."
            )
        if self.origin == VAL and self.split == VAL:
            raise UsageError(
                f"tau chosen on {VAL} says nothing on --split {VAL}, the images it was fitted to: evaluate another "
                "split, or give --tau."
            )

    @property
    def origin(self) -> str:
        """Where tau comes from: `given`, `model`, `val` or `best`."""
        return GIVEN if self.tau is not None else self.tau_from or self.protocol.tau_from


@dataclass(frozen=True)
class Figure:
    """A localization metric.

    Attributes:
        key: name in JSON. One that begins with `max_` is the best over the evaluated images; without it, tau was fixed
            before they were looked at.
        title: name in a table, likewise.
        value: percent.
        tau: threshold it was read at; None: it is a mean over metrics that have one each.
    """

    key: str
    title: str
    value: float
    tau: float | None


@dataclass(frozen=True)
class Scores:
    """What was measured; rates in percent.

    Attributes:
        file: the localizer's, as it was named.
        data, split: what was measured on.
        protocol: name of the protocol that every one of these numbers belongs to.
        images: number of images.
        images_per_second: of the evaluation, decoding included.
        top1, top5: classification accuracy, of the images as the protocol shows them.
        figures: the protocol's localization metrics.
        constant_maps: images whose map told nothing; the protocol says which box they get.
        tau_from: `given`, `model`, `val` or `best`.
        tau_source: the same in words.
        taus: key of each metric of `curves` -> the threshold its figure is read at.
        curves: what was counted, against tau.
    """

    file: str
    data: str
    split: str
    protocol: str
    images: int
    images_per_second: float
    top1: float
    top5: float
    figures: tuple[Figure, ...]
    constant_maps: int
    tau_from: str
    tau_source: str
    taus: Mapping[str, float]
    curves: Curves

    @property
    def tau(self) -> float | None:
        """The threshold of all metrics; None where they have not all the same."""
        distinct = set(self.taus.values())
        return distinct.pop() if len(distinct) == 1 else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; curves are left out."""
        return {
            "file": self.file,
            "data": self.data,
            "split": self.split,
            "protocol": self.protocol,
            "images": self.images,
            "images_per_second": self.images_per_second,
            "top1": self.top1,
            "top5": self.top5,
            **{figure.key: figure.value for figure in self.figures},
            "constant_maps": self.constant_maps,
            "tau": self.tau,
            "taus": {figure.key: figure.tau for figure in self.figures if figure.tau is not None},
            "tau_from": self.tau_from,
            "tau_source": self.tau_source,
        }


def score(localizer: Localizer, source: str, trial: Trial, step: Step = unwatched) -> Scores:
    """Measure a localizer.

    Args:
        localizer: open.
        source: its file, as the user named it.
        trial: what and how.
        step: where the progress of choosing tau, and of measuring, goes.

    Raises:
        ModelError: it lacks the maps that the protocol needs, knows other classes than the data, or returns NaN.
        UsageError: its tau was chosen for another protocol; and as `open_data` does.
        DataError: the data set cannot be used, or an image of it has no box.
    """
    protocol, card = trial.protocol, localizer.card
    window = protocol.window(card.preprocessing)
    count = partial(_curves, protocol, _predict_for(protocol, localizer, source), window)
    used = _fixed_taus(trial, card, source)
    evaluated = _opened(trial, trial.split, window, card)
    chosen_on = 0
    if trial.origin == VAL:
        validation = _opened(trial, VAL, window, card)
        chosen_on = len(validation)
        used = count(validation, protocol.taus, step("choose tau on val")).best_taus()
    wanted = protocol.taus if trial.curve or used is None else np.empty(0)
    started = time.perf_counter()
    curves = count(evaluated, np.union1d(wanted, list((used or {}).values())), step("evaluate"))
    used = used or curves.best_taus()
    return Scores(
        file=source,
        data=trial.data,
        split=trial.split,
        protocol=protocol.name,
        images=curves.images,
        images_per_second=curves.images / (time.perf_counter() - started),
        top1=curves.top1,
        top5=curves.top5,
        figures=_figures(curves, used, "Max" if trial.origin == BEST else ""),
        constant_maps=curves.constant_maps,
        tau_from=trial.origin,
        tau_source=ORIGINS[trial.origin].format(images=chosen_on),
        taus=used,
        curves=curves,
    )


def _predict_for(protocol: Protocol, localizer: Localizer, source: str) -> PredictClasses:
    """Images and true classes -> logits and the maps that the protocol reads boxes off."""
    if not protocol.true_class:
        return lambda images, labels: localizer.predict(images)
    if localizer.predict_classes is None:
        raise ModelError(
            f"{source} gives the map of its predicted class alone, and protocol {protocol.name} needs that of the true "
            "class: export the model with --maps all."
        )
    return localizer.predict_classes


def _opened(trial: Trial, split: str, window: Preprocessing, card: ModelCard) -> DataSet:
    data = open_data(trial.data, split, window, trial.images)
    check_classes(len(card.class_names), data)
    return data


def _fixed_taus(trial: Trial, card: ModelCard, source: str) -> dict[str, float] | None:
    """The user's own tau or the model's, for every metric; None where it is chosen by looking at images."""
    if trial.origin not in (GIVEN, MODEL):
        return None
    if trial.origin == MODEL and card.protocol != trial.protocol.name:
        raise UsageError(
            f"the tau of {source} is for protocol {card.protocol}, not {trial.protocol.name}: use --tau-from {VAL}, or "
            "give --tau."
        )
    tau = card.tau if trial.tau is None else trial.tau
    return {metric.key: tau for metric in trial.protocol.metrics}


def _curves(
    protocol: Protocol,
    predict: PredictClasses,
    window: Preprocessing,
    data: DataSet,
    taus: NDArray[np.float64],
    progress: Progress,
) -> Curves:
    parts = _parts(predict, data, window, progress, nan_maps=protocol.nan_maps)
    return curves_from_parts(protocol, parts, window.image_size, taus)


def _parts(
    predict: PredictClasses, data: DataSet, window: Preprocessing, progress: Progress, *, nan_maps: bool
) -> Iterator[Part]:
    """A batch at a time, with one map of each image.

    The maps of all classes exist of one batch only: 16 x 4 C h w bytes, 12.5 MB at C = 1000.
    """
    done = 0
    for images, some_labels, samples in batches(data, window, BATCH_SIZE):
        labels: Classes = np.asarray(some_labels)
        logits, maps = predict(images, labels)
        check_numbers(logits, maps, done, nan_maps=nan_maps)
        yield Part(logits, maps, labels, [_boxes(sample) for sample in samples])
        done += len(samples)
        progress(done, len(data))


def _boxes(sample: Sample) -> tuple[Box, ...]:
    # `box` refuses a sample that has none, and names it.
    return sample.boxes or (sample.box,)


def _figures(curves: Curves, taus: Mapping[str, float], prefix: str) -> tuple[Figure, ...]:
    """The protocol's metrics at these thresholds, its mean first; the prefix tells best ones from others."""

    def figure(key: str, title: str, value: float, tau: float | None) -> Figure:
        return Figure(f"{prefix.lower()}_{key}" if prefix else key, prefix + title, value, tau)

    found = [
        figure(metric.key, metric.title, curves.at(metric.key, taus[metric.key]), taus[metric.key])
        for metric in curves.protocol.metrics
    ]
    if curves.protocol.mean:
        found.insert(0, figure(*curves.protocol.mean, float(np.mean([f.value for f in found])), None))
    return tuple(found)
