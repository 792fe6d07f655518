"""What a graph costs against another: both on the same images, which stay in memory with the other's outputs."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolchain.calibration import CalibrationSource
from toolchain.card import ModelCard
from toolchain.data.sources import open_data
from toolchain.errors import DataError, ModelError, UsageError
from toolchain.evaluation import Evaluation, Outputs, batches, check_classes, check_numbers, evaluate, output_error
from toolchain.localizer import open_localizer
from toolchain.preprocessing import Box

Floats = NDArray[np.float32]
SPLIT = "val"
"""Choices are made on these images: the test images stay unseen, for the figures that are reported."""
IMAGES = 256
"""To judge on, unless somebody asks for more: one image is 0.4 points, less than the bound of 0.5."""
BATCH = 16


@dataclass(frozen=True)
class Quality:
    """What a graph costs against the reference.

    Attributes:
        logits_noise: noise over signal power of the logits, 1 / SNR as in `OutputError`; 0 where they are equal.
        map_noise: the same of the maps.
        gt_known_loc, top1_loc: percent, by protocol `lctr`; None where the images have no boxes.
        lost: points of GT-Known Loc or of Top-1 Loc, whichever lost more; negative: both gained; None without boxes.
    """

    logits_noise: float
    map_noise: float
    gt_known_loc: float | None = None
    top1_loc: float | None = None
    lost: float | None = None

    @property
    def noise(self) -> float:
        """Of the output that is worse off."""
        return max(self.logits_noise, self.map_noise)

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio of the output that is worse off; infinity where both are equal."""
        return db_from_noise(self.noise)


@dataclass(frozen=True)
class ProbeImages:
    """The images that every graph is judged on.

    Attributes:
        description: in words.
        batches: normalized, (B, 3, S, S) each.
        labels: (N,); zeros where none are known.
        boxes: N true boxes, pixels of the network's input; empty: none are known.
    """

    description: str
    batches: tuple[Floats, ...]
    labels: NDArray[np.int64]
    boxes: tuple[Box, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides a figure: pixels, labels and boxes."""
        digest = hashlib.sha256()
        parts: list[NDArray[Any]] = [*self.batches, self.labels, np.asarray(self.boxes, np.float64)]
        for part in parts:
            digest.update(repr(part.shape).encode() + np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


def images_from_data(spec: str, card: ModelCard, count: int) -> ProbeImages:
    """Images of `val` with their boxes.

    Args:
        spec: as for `--data`.
        card: of the localizer that will see them.
        count: at most so many, evenly spread where the data set spreads them.

    Raises:
        UsageError: they have no boxes; and as `open_data` does.
        ModelError: the localizer knows another number of classes.
    """
    data = open_data(spec, SPLIT, card.preprocessing, count)
    check_classes(len(card.class_names), data)
    if not data[0].boxes:
        raise UsageError(
            f"--max-drop is in points of GT-Known Loc, and the {SPLIT} images of {spec} have no boxes: leave --data "
            "out and bound the output error with --min-snr."
        )
    found = list(batches(data, card.preprocessing, BATCH))
    return ProbeImages(
        f"{len(data)} {SPLIT} images of {spec}",
        tuple(images for images, _, _ in found),
        np.array([label for _, labels, _ in found for label in labels], np.int64),
        tuple(sample.box for _, _, samples in found for sample in samples),
    )


def images_from_source(source: CalibrationSource, card: ModelCard, count: int) -> ProbeImages:
    """The first calibration images: without labels, and without boxes.

    Raises:
        DataError: there is none.
    """
    kept: list[Floats] = []
    missing = count
    for batch in source.images(card.preprocessing):
        kept.append(batch[:missing])
        missing -= len(kept[-1])
        if not missing:
            break
    if not kept:
        raise DataError(f"{source.description}: holds no image to judge a graph on; name a folder that does.")
    labels = np.zeros(count - missing, np.int64)
    return ProbeImages(f"{len(labels)} calibration images ({source.description})", tuple(kept), labels, ())


class Probe:
    """The images, and what the reference says about them.

    Args:
        images: to judge on.
        reference: the float graph, run once.
        tau: threshold that every graph's boxes are read at.

    Raises:
        ModelError: it returns NaN, or one value throughout, which no output error can be measured against.
        BackendError: it does not run.
    """

    def __init__(self, images: ProbeImages, reference: Path, tau: float) -> None:
        self.images = images
        self.tau = tau
        self._outputs = _outputs(reference, images)
        for name, values in (("logits", self._outputs.logits), ("maps", self._outputs.maps)):
            if not np.ptp(values.reshape(len(images), -1), axis=1).any():
                raise ModelError(
                    f"The {name} of {reference} are constant on all of {images.description}: there is nothing to "
                    "compare with; use other images, or a trained model."
                )
        self.evaluation = evaluate(self._outputs, tau) if images.boxes else None

    def quality(self, graph: Path) -> Quality:
        """What `graph` costs: one run over all images.

        Raises:
            BackendError, ModelError: it does not run, or returns NaN.
        """
        outputs = _outputs(graph, self.images)
        error = output_error(outputs, self._outputs, self.tau)
        noises = noise_from_db(error.logits_snr_db), noise_from_db(error.map_snr_db)
        if self.evaluation is None:
            return Quality(*noises)
        found = evaluate(outputs, self.tau)
        return Quality(*noises, found.gt_known_loc, found.top1_loc, points_lost(self.evaluation, found))


def points_lost(reference: Evaluation, found: Evaluation) -> float:
    """Of GT-Known Loc or of Top-1 Loc, whichever lost more, as `--max-drop` counts them."""
    return max(reference.gt_known_loc - found.gt_known_loc, reference.top1_loc - found.top1_loc)


def noise_from_db(snr_db: float) -> float:
    """Noise over signal power: powers of independent errors add, decibels do not."""
    return float(10 ** (-snr_db / 10))


def db_from_noise(noise: float) -> float:
    """The inverse."""
    return math.inf if noise == 0 else -10 * math.log10(noise)


def _outputs(graph: Path, images: ProbeImages) -> Outputs:
    logits: list[Floats] = []
    maps: list[Floats] = []
    with open_localizer(graph) as localizer:
        size = localizer.card.preprocessing.image_size
        for batch in images.batches:
            some_logits, some_maps = localizer.predict(batch)
            check_numbers(some_logits, some_maps, sum(map(len, logits)))
            logits.append(some_logits)
            maps.append(some_maps)
    return Outputs(np.concatenate(logits), np.concatenate(maps), images.labels, images.boxes, size)
