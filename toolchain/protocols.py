"""The evaluation protocols: what each one sees of an image, and what it calls right (spec/lctr.md).

Numbers of different protocols are not comparable. Each protocol is data; one piece of code counts for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from toolchain.boxes import IOU_NEEDED, LCTR_BOXES, PROTOCOL, Boxes, BoxRules
from toolchain.errors import chosen
from toolchain.preprocessing import Box, Preprocessing

MODEL, VAL, BEST = "model", "val", "best"
"""Where tau may come from: the model's metadata; the images of `val`; the evaluated images themselves."""

ROUNDING = 1e-6
"""Larger than any rounding error of a scaled coordinate, smaller than a pixel over an image's side."""


@dataclass(frozen=True)
class Metric:
    """The share of images whose box is right and, perhaps, whose class is.

    Attributes:
        key: name in JSON.
        title: name in a table.
        iou: overlap with a true box from which on a box is right.
        within: the true class has to be among so many predicted ones; None: the class is given.
    """

    key: str
    title: str
    iou: float
    within: int | None = None


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol.

    Top-k Loc by `tscam` reads a box off the map of each of the k predicted classes, and a box is right where its class
    is the true one as well. So of those k maps only that of the true class decides, and no other is asked for.

    Attributes:
        name: as for `--protocol`.
        squashed: the whole image is squashed to the network's input; False: the model's own crop.
        true_class: boxes are read off the map of the true class; False: of the predicted class.
        rules: from that map to boxes.
        metrics: what is counted. Where the protocol takes one tau for all, it is the best one of the first metric.
        tau_steps: thresholds are k / tau_steps, from 0 to below 1.
        tau_from: where tau comes from unless the user says otherwise.
        first_truth: an image has one true box, its first; False: any of them may be met.
        whole_pixels: true boxes are cut to whole pixels, towards zero.
        truths_inside: true boxes end at the last pixel, S - 1.
        nan_maps: a map with NaN counts as constant; False: the model is refused.
        own_taus: every metric has a best tau of its own.
        mean: key and title of the mean of the metrics, where that is the protocol's figure.
    """

    name: str
    squashed: bool
    true_class: bool
    rules: BoxRules
    metrics: tuple[Metric, ...]
    tau_steps: int
    tau_from: str
    first_truth: bool = False
    whole_pixels: bool = True
    truths_inside: bool = False
    nan_maps: bool = False
    own_taus: bool = False
    mean: tuple[str, str] | None = None

    @property
    def taus(self) -> NDArray[np.float64]:
        """The thresholds of a curve, and those that one is chosen among: (T,).

        `int(tau * 255)` is the same for them as for `np.arange(0, 1, 1 / tau_steps)`, and they read better.
        """
        return np.arange(self.tau_steps) / self.tau_steps

    def window(self, preprocessing: Preprocessing) -> Preprocessing:
        """What a model of this preprocessing gets to see of an image."""
        return replace(preprocessing, resize=None) if self.squashed else preprocessing

    def truths(self, boxes: Sequence[Box], image_size: int) -> Boxes:
        """What a box may match, of all true boxes of an image (at least one): (m, 4)."""
        found = np.array(boxes[:1] if self.first_truth else boxes, np.float64)
        if self.whole_pixels:
            # 3 * (224 / 3) may fall short of 224, where 3 * 224 / 3 in whole numbers does not.
            found = np.floor(found + ROUNDING)
        return np.minimum(found, image_size - 1) if self.truths_inside else found


TOP_K_LOC = (
    Metric("gt_known_loc", "GT-Known Loc", IOU_NEEDED),
    Metric("top1_loc", "Top-1 Loc", IOU_NEEDED, within=1),
    Metric("top5_loc", "Top-5 Loc", IOU_NEEDED, within=5),
)
LCTR = Protocol(
    PROTOCOL,
    squashed=False,
    true_class=False,
    rules=LCTR_BOXES,
    metrics=TOP_K_LOC,
    tau_steps=100,
    tau_from=MODEL,
    first_truth=True,
    whole_pixels=False,
)
TSCAM = Protocol(
    "tscam",
    squashed=True,
    true_class=True,
    rules=BoxRules(empty=(0, 0, 1, 1), inclusive=True),
    metrics=TOP_K_LOC,
    tau_steps=100,
    # Published: 0.1 for CUB, 0.12 for ILSVRC, of another model. A guess by data set would be silently wrong here.
    tau_from=VAL,
    truths_inside=True,
)
MAXBOXACC = Protocol(
    "maxboxacc",
    squashed=True,
    true_class=True,
    rules=BoxRules(cv2.INTER_CUBIC, np.float64, inside=True, empty=(0, 0, 0, 0), inclusive=True),
    metrics=(Metric("box_acc", "BoxAcc", IOU_NEEDED),),
    tau_steps=1000,
    tau_from=BEST,
    nan_maps=True,
)
MAXBOXACCV2 = replace(
    MAXBOXACC,
    name="maxboxaccv2",
    rules=replace(MAXBOXACC.rules, all_contours=True),
    metrics=tuple(
        Metric(f"box_acc_v2_{percent}", f"BoxAccV2 IoU 0.{percent // 10}", percent / 100) for percent in (30, 50, 70)
    ),
    own_taus=True,
    mean=("box_acc_v2", "BoxAccV2"),
)
PROTOCOLS = {protocol.name: protocol for protocol in (LCTR, TSCAM, MAXBOXACC, MAXBOXACCV2)}


def protocol_named(name: str) -> Protocol:
    """The protocol called `name`.

    Raises:
        UsageError: there is none.
    """
    return chosen("protocol", name, PROTOCOLS)
