"""How well a localizer classifies and localizes by protocol `lctr`, and how far its outputs are from a reference's.

`toolchain.scores` measures by any protocol; here outputs are kept, so that several localizers can be compared.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.agreement import snr_db
from toolchain.boxes import PROTOCOL, box_from_map, iou
from toolchain.curve import Curves, Part, curves_from_parts
from toolchain.data.dataset import DataSet, Sample
from toolchain.data.decoding import decoded_chunks
from toolchain.errors import ModelError
from toolchain.preprocessing import Box, Preprocessing
from toolchain.progress import Progress, silent
from toolchain.protocols import LCTR

Floats = NDArray[np.float32]
Classes = NDArray[np.int64]
Predict = Callable[[Floats], tuple[Floats, Floats]]
"""Normalized images (B, 3, S, S) -> logits (B, C) and fused maps (B, h, w) of the predicted classes."""
PredictClasses = Callable[[Floats, Classes], tuple[Floats, Floats]]
"""Normalized images (B, 3, S, S), a class of each (B,) -> logits (B, C) and fused maps (B, h, w) of those classes."""


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
) -> Iterator[tuple[Floats, list[int], list[Sample]]]:
    """Normalized images (B, 3, S, S), labels and the samples themselves of a data set, in order."""
    for samples in decoded_chunks(data, batch_size):
        images = preprocessing.normalize(np.stack([s.image for s in samples]))
        yield images, [s.label for s in samples], samples


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
        DataError: an image has no box.
    """
    logits: list[list[Floats]] = [[] for _ in predictors]
    maps: list[list[Floats]] = [[] for _ in predictors]
    labels: list[int] = []
    boxes: list[Box] = []
    for images, some_labels, samples in batches(data, preprocessing, batch_size):
        for k, predict in enumerate(predictors):
            some_logits, some_maps = predict(images)
            check_classes(some_logits.shape[1], data)
            check_numbers(some_logits, some_maps, len(labels))
            logits[k].append(some_logits)
            maps[k].append(some_maps)
        labels += some_labels
        boxes += [sample.box for sample in samples]
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
    return _curves(outputs, LCTR.taus).best_taus()["gt_known_loc"]


def evaluate(outputs: Outputs, tau: float) -> Evaluation:
    """Metrics by protocol `lctr`: one box per image, from the predicted class, for every localization metric."""
    curves = _curves(outputs, np.array([tau]))
    return Evaluation(
        images=curves.images,
        top1=curves.top1,
        top5=curves.top5,
        gt_known_loc=curves.at("gt_known_loc", tau),
        top1_loc=curves.at("top1_loc", tau),
        top5_loc=curves.at("top5_loc", tau),
        constant_maps=curves.constant_maps,
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


def _centred(logits: Floats) -> Floats:
    return np.asarray(logits - logits.mean(1, keepdims=True))


def _min_max(maps: Floats) -> Floats:
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    spread = np.where(high > low, high - low, 1)
    return np.asarray((maps - low) / spread)


def check_classes(known: int, data: DataSet) -> None:
    """Refuse a model that knows another number of classes than a data set has.

    Raises:
        ModelError: it does.
    """
    if known != len(data.class_names):
        raise ModelError(
            f"the model knows {known} classes and the data set has {len(data.class_names)}: "
            "evaluate on the data set it was trained for."
        )


def check_numbers(logits: Floats, maps: Floats, near: int, *, nan_maps: bool = False) -> None:
    """Refuse outputs that are no numbers.

    Args:
        logits: (B, C).
        maps: (B, h, w).
        near: index of the first image, for the message.
        nan_maps: the protocol knows what to do with NaN in a map.

    Raises:
        ModelError: NaN or infinity among them.
    """
    usable = np.isfinite(maps) | (np.isnan(maps) & nan_maps)
    if not (np.isfinite(logits).all() and usable.all()):
        raise ModelError(f"the model returns NaN or infinity near image {near}: it cannot be evaluated.")


def _curves(outputs: Outputs, taus: NDArray[np.float64]) -> Curves:
    whole = Part(outputs.logits, outputs.maps, outputs.labels, [(box,) for box in outputs.boxes])
    return curves_from_parts(LCTR, [whole], outputs.image_size, taus)
