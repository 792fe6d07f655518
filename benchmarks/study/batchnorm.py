"""A BatchNorm network with ImageNet's weights, calibrated for photographs: zero-shot FDDA, noise, real photographs."""

import tempfile
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from calib import fdda
from calib.alignment import batchnorm_alignment
from calib.fdda import Fdda
from calib.teacher import Teacher
from engines.agreement import snr_db
from engines.registry import open_engine
from exporters.files import write_onnx
from exporters.torch_export import onnx_from_torch
from study import efficientnet
from study.arms import NOISE, REAL, ZERO_SHOT
from study.images import ImageSet, drawn, made
from study.ledger import Study
from study.localizers import CHUNK
from study.plan import BATCHNORM, BatchNormPlan
from study.widths import observed_ranges, quantized
from toolchain.artifacts import writing
from toolchain.calibration import CalibrationSource, noise
from toolchain.data.decoding import decoded_chunks
from toolchain.data.sources import open_data
from toolchain.preprocessing import Preprocessing, imagenet

ARMS = (NOISE, ZERO_SHOT, REAL)


def measured(plan: BatchNormPlan, network: nn.Module, data: str, study: Study) -> dict[str, Any]:
    """Every arm and seed: width -> agreement with FP32, and the range of each tensor.

    Args:
        plan: how much.
        network: EfficientNet-Lite0.
        data: photographs, as for `--data`; of other classes, so that agreement with FP32 is all there is to see.
        study: keeps what is made.
    """
    subject = _Subject(plan, network, data, study)
    runs = []
    for seed in range(plan.seeds):
        for arm in ARMS:
            source, made_in = subject.source(arm, seed)
            key = {"part": BATCHNORM, "arm": arm, "seed": seed, "test": plan.test_images}
            widths = [width.name for width in plan.widths]
            found = study.ledger.result(
                partial(subject.quality, source), **key, images=source.description, widths=widths, data=data
            )
            runs.append({"arm": arm, "seed": seed, "images": source.count, "made_in_s": made_in, **found})
            print(f"EfficientNet-Lite0: {arm}, seed {seed}: {found['seconds']:.0f} s", flush=True)
    facts = {"name": "EfficientNet-Lite0", "test_images": plan.test_images}
    return {**facts, "steps": {ZERO_SHOT: plan.synthesis.steps}, "runs": runs}


def synthetic_set(plan: BatchNormPlan, network: nn.Module, data: str, study: Study) -> ImageSet:
    """The first seed's images of zero-shot FDDA."""
    return _Subject(plan, network, data, study).synthetic(0)


class _Subject:
    """The network, with what is needed once for all arms."""

    def __init__(self, plan: BatchNormPlan, network: nn.Module, data: str, study: Study) -> None:
        mean, std = efficientnet.STATED.mean, efficientnet.STATED.std
        assert mean is not None
        assert std is not None
        self._plan, self._network, self._data = plan, network, data
        self._room, self._device = study.room / "efficientnet-lite0", study.device
        self._window = Preprocessing(efficientnet.SIZE, imagenet(efficientnet.SIZE).resize, mean, std)
        self._teacher = Teacher(network, efficientnet.CLASSES, efficientnet.SIZE, mean, std)
        self._training = cache(partial(open_data, data, "train", self._window))
        self._float = self._room / "model.onnx"
        if not self._float.exists():
            graph = onnx_from_torch(network, image_size=efficientnet.SIZE, metadata={}, output_names=("logits",))
            with writing(self._float) as temporary:
                write_onnx(graph, temporary)

    def synthetic(self, seed: int) -> ImageSet:
        """Images of zero-shot FDDA."""
        much, network = self._plan.synthesis, self._network.to(self._device)
        config = replace(fdda.FAST, steps=much.steps)
        method = Fdda(config, batchnorm_alignment(network, None, relative=config.relative))
        name = f"fdda-{much.steps}-steps"
        return made(self._room, name, method, self._teacher, count=much.count, seed=seed)

    def source(self, arm: str, seed: int) -> tuple[CalibrationSource, float | None]:
        """The images of an arm, and the seconds that making them took; None: nobody made them."""
        if arm == NOISE:
            return noise(self._plan.images, seed), None
        if arm == REAL:
            return drawn(self._room, "real", self._training, self._plan.images, seed).source(), None
        found = self.synthetic(seed)
        return found.source(), found.seconds

    def quality(self, source: CalibrationSource) -> dict[str, Any]:
        """Of the network, calibrated with these images, at each width; and the ranges that they give."""
        with tempfile.TemporaryDirectory() as name:
            files = quantized(self._float, source, Path(name), self._plan.widths, efficientnet.STATED)
            logits = {width.name: _logits(path, self._images) for width, path in files.items()}
        figures = {width: _agreement(found, self._reference) for width, found in logits.items()}
        return {"widths": figures, "amax": observed_ranges(self._float, source, self._window)}

    @cached_property
    def _images(self) -> NDArray[np.float32]:
        """Held-out photographs, normalized."""
        data = open_data(self._data, "test", self._window, self._plan.test_images)
        return self._window.normalize(np.stack([sample.image for chunk in decoded_chunks(data) for sample in chunk]))

    @cached_property
    def _reference(self) -> NDArray[np.float32]:
        """FP32's logits."""
        return _logits(self._float, self._images)


def _logits(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    with open_engine(path) as session:
        chunks = (images[k : k + CHUNK] for k in range(0, len(images), CHUNK))
        return np.concatenate([session.run({"image": chunk})["logits"] for chunk in chunks])


def _agreement(found: NDArray[np.float32], reference: NDArray[np.float32]) -> dict[str, float]:
    same = found.argmax(1) == reference.argmax(1)
    # As for localizers: softmax does not see what all classes have in common.
    ours, theirs = (logits - logits.mean(1, keepdims=True) for logits in (found, reference))
    return {"top1_agreement": 100 * float(same.mean()), "logits_snr_db": snr_db(ours, theirs)}
