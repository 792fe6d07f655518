"""A small BatchNorm network at four bits in every layer, fine-tuned on the images of each arm (spec/fdda.md).

All arms start from the same network and see as many images; synthetic ones differ in the losses that their generator
was trained with and in nothing else. Each arm has the learning rate that is best for it on validation images: one rate
for all would decide the comparison, for what some arms gain at ruins others. The first seeds choose it by their mean:
a single one takes a rate for an image or two more, at which the next seed's student is ruined. 1e-4, ten times what is
tried here, ruined one student or another of every arm but the real images'.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calib import fdda
from calib.alignment import Alignment, batchnorm_alignment
from calib.batchnorm import batchnorm_view, deep_layers
from calib.fdda import Fdda, LossWeights
from calib.statistics import collect
from calib.teacher import Teacher
from study.arms import ALIGNED, CENTERED, REAL, UNTUNED, ZERO_SHOT
from study.images import made
from study.ledger import Study
from study.plan import FINE_TUNING, FineTuningPlan
from study.residual import SIZE, WINDOW, ResNet20, logits_of, shapes_at_half_size, trained
from toolchain.errors import TrainingError
from toolchain.finetuning.construction import student_from_float
from toolchain.finetuning.images import Images
from toolchain.finetuning.loop import Schedule, finetune
from toolchain.finetuning.student import Bits, Form, Student

ARMS = (UNTUNED, ZERO_SHOT, CENTERED, ALIGNED, REAL)
WEIGHTS: Mapping[str, LossWeights] = {
    ZERO_SHOT: replace(fdda.FAST.weights, centralized=0.0, distorted=0.0),
    CENTERED: replace(fdda.FAST.weights, distorted=0.0),
    ALIGNED: fdda.FAST.weights,
}
"""Of each synthetic arm; both cross-entropies are part of all."""
MIN_IMAGES = 8
"""Of a class center: the project's own, where the published method has one."""


def measured(plan: FineTuningPlan, study: Study) -> dict[str, Any]:
    """FP32, the choice of learning rates, and every arm and seed."""
    subject = _Subject(plan, study)
    about = {"part": FINE_TUNING, "bits": plan.bits, "epochs": plan.epochs, "room": subject.name}
    reference = study.ledger.result(subject.float_accuracy, **about)
    made_of = {"count": plan.synthesis.count, "steps": plan.synthesis.steps}
    choice = {arm: _choice(subject, arm, plan, {**about, **made_of}, study) for arm in ARMS if arm != UNTUNED}
    best = {arm: best_rate(rates) for arm, rates in choice.items()}
    runs = []
    for seed in range(plan.seeds):
        for arm in ARMS:
            key = {**about, **made_of, "arm": arm, "seed": seed, "rate": best.get(arm)}
            found = study.ledger.result(partial(subject.accuracy, arm, seed, best.get(arm, 0.0)), **key)
            runs.append({"arm": arm, "seed": seed, **found})
            print(f"ResNet-20: {arm}, seed {seed}: {found['top1']:.2f}, {found['seconds']:.0f} s", flush=True)
    tried = {arm: {f"{rate:g}": fmean(top1) for rate, top1 in rates.items()} for arm, rates in choice.items()}
    chosen = {"validation_top1": tried, "learning_rate": best}
    facts = {"name": "ResNet-20", "bits": plan.bits, "epochs": plan.epochs, "images": plan.synthesis.count}
    facts |= {"steps": plan.synthesis.steps, "choosing_seeds": plan.choosing_seeds}
    return {**facts, "test_images": plan.test_images, **chosen, "fp32": reference, "runs": runs}


def best_rate(validated: Mapping[float, Sequence[float]]) -> float:
    """The learning rate with the best mean; of equals the first.

    Args:
        validated: learning rate -> Top-1 of each seed's student on validation images.
    """
    return max(validated, key=lambda rate: fmean(validated[rate]))


def _choice(
    subject: "_Subject", arm: str, plan: FineTuningPlan, key: Mapping[str, Any], study: Study
) -> dict[float, list[float]]:
    """Learning rate -> Top-1 of the first seeds' students on validation images."""
    about = {**key, "arm": arm, "validation": plan.validation_images}
    return {
        rate: [
            study.ledger.result(partial(subject.validated, arm, seed, rate), **about, rate=rate, seed=seed)["top1"]
            for seed in range(plan.choosing_seeds)
        ]
        for rate in plan.learning_rates
    }


class _Subject:
    """The trained network, its data and its statistics: each made where a figure is missing."""

    def __init__(self, plan: FineTuningPlan, study: Study) -> None:
        self._plan, self._device = plan, study.device
        self._room = study.room / f"resnet20-{plan.train_images}-images-{plan.train_epochs}-epochs"
        # The best learning rate's students of the first seeds are judged twice, on validation and on test images.
        self._student = cache(self._tuned)

    @cached_property
    def _train(self) -> Images:
        return shapes_at_half_size("train", self._plan.train_images)

    @cached_property
    def _validation(self) -> Images:
        return shapes_at_half_size("val", self._plan.validation_images)

    @cached_property
    def _test(self) -> Images:
        return shapes_at_half_size("test", self._plan.test_images)

    @cached_property
    def _network(self) -> ResNet20:
        return trained(self._room / "resnet20.safetensors", self._train, self._plan.train_epochs, self._device)

    @cached_property
    def _teacher(self) -> Teacher:
        return Teacher(self._network, self._network.fc.out_features, SIZE, WINDOW.mean, WINDOW.std)

    @cached_property
    def _alignment(self) -> Alignment:
        view = batchnorm_view(self._network)
        assert self._train.labels is not None
        pairs = list(zip(self._train.pixels.split(100), self._train.labels.split(100), strict=True))
        layers = deep_layers(view.layers)
        found = collect(self._teacher, view, pairs, min_images=MIN_IMAGES, chosen=lambda separation: layers)
        return batchnorm_alignment(self._network, found, relative=fdda.FAST.relative)

    @property
    def name(self) -> str:
        """Says what the network was trained on."""
        return self._room.name

    def float_accuracy(self) -> dict[str, Any]:
        """Of FP32."""
        return {"top1": _top1(logits_of(self._network, self._test), self._test)}

    def validated(self, arm: str, seed: int, rate: float) -> dict[str, Any]:
        """On validation images, tuned at this learning rate."""
        return {"top1": self._student_top1(arm, seed, rate, self._validation)}

    def accuracy(self, arm: str, seed: int, rate: float) -> dict[str, Any]:
        """On test images; and in percent how many of its images the network takes for what they were made as."""
        images = self._images(arm, seed)
        return {
            "top1": self._student_top1(arm, seed, rate, self._test),
            "label_agreement": _top1(logits_of(self._network, images), images),
        }

    def _student_top1(self, arm: str, seed: int, rate: float, images: Images) -> float:
        try:
            student = self._student(arm, seed, rate)
        except TrainingError:
            # No longer finite: no answer of it is right.
            return 0.0
        return _top1(logits_of(student, images), images)

    def _tuned(self, arm: str, seed: int, rate: float) -> Student:
        """A student of the arm; at a rate of 0 its ranges are all that it learns."""
        bits = Bits(self._plan.bits, self._plan.bits, self._plan.bits)
        on_cpu = copy.deepcopy(self._network).cpu()
        student = student_from_float(on_cpu, Form(SIZE, largest_pixel=WINDOW.largest), bits)
        schedule = Schedule(epochs=self._plan.epochs if rate else 1, range_epochs=1, learning_rate=rate, seed=seed)
        finetune(student.to(self._device), self._network, self._images(arm, seed), schedule)
        return student

    def _images(self, arm: str, seed: int) -> Images:
        much = self._plan.synthesis
        arm = ALIGNED if arm == UNTUNED else arm
        if arm == REAL:
            assert self._train.labels is not None
            rows = torch.from_numpy(np.random.default_rng(seed).permutation(len(self._train.labels))[: much.count])
            return Images(self._train.pixels[rows], self._train.labels[rows])
        config = replace(fdda.FAST, steps=much.steps, weights=WEIGHTS[arm])
        name = f"{list(WEIGHTS).index(arm)}-{much.steps}-steps"
        found = made(self._room, name, Fdda(config, self._alignment), self._teacher, count=much.count, seed=seed)
        return found.tensors(WINDOW)


def _top1(logits: NDArray[np.float32], images: Images) -> float:
    assert images.labels is not None
    return 100 * float((logits.argmax(1) == images.labels.numpy()).mean())
