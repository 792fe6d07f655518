"""How well a localizer classifies and localizes (protocol `lctr`), and how far its outputs are from a reference's."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolchain.boxes import IOU_NEEDED, PROTOCOL, box_from_map, boxes_by_tau, iou
from toolchain.data.dataset import DataSet
from toolchain.errors import ModelError
from toolchain.preprocessing import Box, Preprocessing
from toolchain.progress import Progress, silent

Floats = NDArray[np.float32]
Predict = Callable[[Floats], tuple[Floats, Floats]]
"""Normalized images (B, 3, S, S) -> logits (B, C) and maps (B, h, w)."""

TAUS = np.arange(0.01, 0.70, 0.01)


@dataclass(frozen=True)
class Outputs:
    """What a localizer said about a data set, and what is true.

    Attributes:
        logits: (N, C).
        maps: (N, h, w).
        labels: (N,).
        boxes: N true boxes, pixels of the network's input.
        image_size: side of the network's input.
    """

    logits: Floats
    maps: Floats
    labels: NDArray[np.int64]
    boxes: tuple[Box, ...]
    image_size: int


@dataclass(frozen=True)
class Evaluation:
    """Metrics over a data set; rates in percent.

    Attributes:
        images: number of images.
        top1, top5: classification accuracy.
        gt_known_loc: box right (IoU >= 0.5).
        top1_loc, top5_loc: box right and class among the first 1 / 5.
        constant_maps: images whose map told nothing; their box is the whole image.
        tau: threshold the boxes were read at.
        protocol: by which these numbers were computed; numbers of different protocols are not comparable.
    """

    images: int
    top1: float
    top5: float
    gt_known_loc: float
    top1_loc: float
    top5_loc: float
    constant_maps: int
    tau: float
    protocol: str = PROTOCOL


@dataclass(frozen=True)
class OutputError:
    """Distance of a localizer's outputs from a reference's on the same images.

    Attributes:
        logits_snr_db: signal-to-noise ratio of the logits, `10 log10(sum ref^2 / sum (ref - out)^2)`; the mean over
            classes is taken off first: softmax does not see it.
        map_snr_db: the same of the maps after min-max, which is all that the boxes see.
        box_agreement: percent of images whose box has IoU >= 0.9 with the reference's.
        top1_agreement: percent of images with the same predicted class.
    """

    logits_snr_db: float
    map_snr_db: float
    box_agreement: float
    top1_agreement: float


def batches(
    data: DataSet, preprocessing: Preprocessing, batch_size: int
) -> Iterator[tuple[Floats, list[int], list[Box]]]:
    """Normalized images (B, 3, S, S), labels and boxes of a data set, in order."""
    for start in range(0, len(data), batch_size):
        samples = [data[i] for i in range(start, min(start + batch_size, len(data)))]
        images = preprocessing.normalize(np.stack([s.image for s in samples]))
        yield images, [s.label for s in samples], [s.box for s in samples]


def collect_outputs(
    predictors: Sequence[Predict],
    data: DataSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 16,
    progress: Progress = silent,
) -> list[Outputs]:
    """Run localizers over a data set; each image is decoded once for all of them.

    Raises:
        ModelError: a localizer returned NaN or infinity, or has another number of classes than the data set.
    """
    logits: list[list[Floats]] = [[] for _ in predictors]
    maps: list[list[Floats]] = [[] for _ in predictors]
    labels: list[int] = []
    boxes: list[Box] = []
    for images, some_labels, some_boxes in batches(data, preprocessing, batch_size):
        for k, predict in enumerate(predictors):
            some_logits, some_maps = predict(images)
            _check_classes(some_logits, data)
            if not (np.isfinite(some_logits).all() and np.isfinite(some_maps).all()):
                raise ModelError(f"the model returns NaN or infinity near image {len(labels)}: it cannot be evaluated.")
            logits[k].append(some_logits)
            maps[k].append(some_maps)
        labels += some_labels
        boxes += some_boxes
        progress(len(labels), len(data))
    return [
        Outputs(
            np.concatenate(some_logits),
            np.concatenate(some_maps),
            np.asarray(labels),
            tuple(boxes),
            preprocessing.image_size,
        )
        for some_logits, some_maps in zip(logits, maps, strict=True)
    ]


def choose_tau(outputs: Outputs) -> float:
    """The threshold of highest GT-Known Loc; the middle one where several are best.

    Call it with outputs on `val`, never on the images the result is reported on.
    """
    hits = np.zeros(len(TAUS))
    for map_, truth in zip(outputs.maps, outputs.boxes, strict=True):
        found = boxes_by_tau(map_, outputs.image_size, TAUS)
        hits += [iou(f.box, truth) >= IOU_NEEDED for f in found]
    best = np.flatnonzero(hits == hits.max())
    return float(round(TAUS[best[len(best) // 2]], 2))


def evaluate(outputs: Outputs, tau: float) -> Evaluation:
    """Metrics by protocol `lctr`: one box per image, from the predicted class, for every localization metric."""
    ranked = np.argsort(-outputs.logits, axis=1, kind="stable")[:, :5]
    first = ranked[:, 0] == outputs.labels
    five = (ranked == outputs.labels[:, None]).any(1)
    found = [box_from_map(m, outputs.image_size, tau) for m in outputs.maps]
    right = np.array([iou(f.box, truth) >= IOU_NEEDED for f, truth in zip(found, outputs.boxes, strict=True)])

    def percent(of: NDArray[np.bool_]) -> float:
        return 100 * float(of.mean())

    return Evaluation(
        images=len(found),
        top1=percent(first),
        top5=percent(five),
        gt_known_loc=percent(right),
        top1_loc=percent(right & first),
        top5_loc=percent(right & five),
        constant_maps=sum(f.constant for f in found),
        tau=tau,
    )


def output_error(outputs: Outputs, reference: Outputs, tau: float) -> OutputError:
    """How far `outputs` are from `reference`, on the same images and at the same threshold."""
    agreement = [
        iou(
            box_from_map(ours, outputs.image_size, tau).box,
            box_from_map(theirs, reference.image_size, tau).box,
        )
        >= 0.9
        for ours, theirs in zip(outputs.maps, reference.maps, strict=True)
    ]
    same_class = outputs.logits.argmax(1) == reference.logits.argmax(1)
    return OutputError(
        logits_snr_db=snr_db(_centred(outputs.logits), _centred(reference.logits)),
        map_snr_db=snr_db(_min_max(outputs.maps), _min_max(reference.maps)),
        box_agreement=100 * float(np.mean(agreement)),
        top1_agreement=100 * float(same_class.mean()),
    )


def snr_db(values: Floats, reference: Floats) -> float:
    """`10 log10(sum reference^2 / sum (reference - values)^2)`; infinity where they are equal.

    Minus infinity where the reference is zero throughout and the values are not.
    """
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - values).sum())
    if noise == 0 or signal == 0:
        return math.inf if noise == 0 else -math.inf
    return 10 * math.log10(signal / noise)


def _centred(logits: Floats) -> Floats:
    return np.asarray(logits - logits.mean(1, keepdims=True))


def _min_max(maps: Floats) -> Floats:
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    spread = np.where(high > low, high - low, 1)
    return np.asarray((maps - low) / spread)


def _check_classes(logits: Floats, data: DataSet) -> None:
    if logits.shape[1] != len(data.class_names):
        raise ModelError(
            f"the model knows {logits.shape[1]} classes and the data set has {len(data.class_names)}: "
            "evaluate on the data set it was trained for."
        )
