"""Synthetic images by the clock: seconds to a usable set, at 96, 112 and 224 pixels.

Sets that the other parts made are not made again: their seconds are those of the making.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from calib import fdda
from calib.alignment import batchnorm_alignment
from calib.fdda import Fdda
from calib.teacher import Teacher
from study import batchnorm, localizers
from study.arms import GUIDE
from study.images import ImageSet, made
from study.ledger import Study
from study.plan import Plan, SpeedPlan
from toolchain.data.shapes import CLASSES, PREPROCESSING
from toolchain.model.guide import GUIDE_PRESETS, Guide

SMALL = 96
"""Pixels of the side."""


def measured(plan: Plan, network: nn.Module | None, data: str, study: Study) -> list[dict[str, Any]]:
    """A row for every network and method.

    Args:
        plan: of all parts.
        network: EfficientNet-Lite0, the guide of the size of a MobileNet; None: it is not there.
        data: photographs.
        study: keeps what is made.
    """
    rows = []
    if plan.speed is not None:
        rows.append(_row("guide-nano", GUIDE, _at_96_pixels(plan.speed, study), plan.speed.steps))
    for localizer in plan.localizers:
        sets = localizers.synthetic_sets(localizer, study)
        rows += [_row(localizer.name, arm, held, localizer.routes[arm].steps) for arm, held in sets.items()]
    if network is not None and plan.batchnorm is not None:
        held = batchnorm.synthetic_set(plan.batchnorm, network, data, study)
        rows.append(_row("EfficientNet-Lite0", "zero-shot FDDA", held, plan.batchnorm.synthesis.steps))
    return rows


def _at_96_pixels(plan: SpeedPlan, study: Study) -> ImageSet:
    """Random weights are as fast as trained ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        guide = Guide(GUIDE_PRESETS["guide-nano"], len(CLASSES)).eval().to(study.device)
    teacher = Teacher(guide, len(CLASSES), SMALL, PREPROCESSING.mean, PREPROCESSING.std)
    config = replace(fdda.FAST, steps=plan.steps)
    method = Fdda(config, batchnorm_alignment(guide, None, relative=config.relative))
    name = f"guide-nano-{SMALL}-pixels-{plan.steps}-steps"
    return made(study.room, name, method, teacher, count=plan.count, seed=0)


def _row(network: str, method: str, made_set: ImageSet, steps: int) -> dict[str, Any]:
    count, side = made_set.images.shape[:2]
    facts = {"pixels": side, "images": count, "steps": steps, "seconds": made_set.seconds}
    return {"network": network, "method": method, **facts, "images_per_s": count / made_set.seconds}
