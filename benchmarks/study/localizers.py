"""Localizers calibrated with the images of each arm, against FP32 on held-out images."""

import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib import image_set, statistics
from study.arms import GUIDE, NOISE, PSAQ, REAL, SEED_IMAGES, TOKEN
from study.images import ImageSet, drawn, drawn_of_each_class, made
from study.ledger import Study
from study.plan import DECIDING_ARMS, LocalizerPlan
from study.widths import W8A8, observed_ranges, quantized
from toolchain import stages
from toolchain.artifacts import sha256_of, sidecar_of
from toolchain.boxes import box_from_map, iou
from toolchain.calibration import CalibrationSource, Stated, noise
from toolchain.data.decoding import decoded_chunks
from toolchain.data.sources import open_data
from toolchain.evaluation import Outputs, evaluate, output_error
from toolchain.localizer import open_localizer
from toolchain.model import checkpoint
from toolchain.preprocessing import Box, Preprocessing
from toolchain.requests import FDDA, Request, method_of
from toolchain.requests import PSAQ as PATCH_SIMILARITY
from toolchain.teachers import KnownTeacher, guide_teacher, localizer_teacher, statistics_of
from toolchain.training.guide import GuideRun
from toolchain.training.recipes import adjusted, recipe_named
from toolchain.training.run import Run

CHUNK = 16
"""Images in one call when outputs are collected."""
EACH = 1
"""Real images of a class in the arm of seed images: the published method has so many at the deployment site."""
GUIDE_BATCH = 32
METRICS = ("top1", "gt_known_loc", "top1_loc")


@dataclass(frozen=True)
class HeldOut:
    """Held-out images, decoded once, for a hundred files see them.

    Attributes:
        images: (N, S, S, 3) uint8 RGB.
        labels: (N,).
        boxes: one of each.
        window: of the model that sees them.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    boxes: tuple[Box, ...]
    window: Preprocessing

    def outputs(self, path: Path) -> Outputs:
        """Of the localizer in a file."""
        with open_localizer(path) as localizer:
            chunks = (self.images[k : k + CHUNK] for k in range(0, len(self.images), CHUNK))
            found = [localizer.predict(self.window.normalize(chunk)) for chunk in chunks]
        logits, maps = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Outputs(logits, maps, self.labels, self.boxes, self.window.image_size)


@dataclass(frozen=True)
class Reference:
    """FP32 on held-out images, which other files are compared with.

    Attributes:
        held_out: the images.
        outputs: of FP32.
        tau: that boxes are read at.
    """

    held_out: HeldOut
    outputs: Outputs
    tau: float

    @property
    def accuracy(self) -> dict[str, Any]:
        """Of FP32 itself."""
        return _accuracy(self.outputs, self.tau)

    def figures(self, path: Path) -> dict[str, Any]:
        """Accuracy of the localizer in a file, and how far it is from FP32."""
        found, size = self.held_out.outputs(path), self.outputs.image_size
        pairs = zip(found.maps, self.outputs.maps, strict=True)
        overlap = [iou(*(box_from_map(each, size, self.tau).box for each in pair)) for pair in pairs]
        error = asdict(output_error(found, self.outputs, self.tau))
        return {**_accuracy(found, self.tau), **error, "box_iou": 100 * float(np.mean(overlap))}


def _accuracy(found: Outputs, tau: float) -> dict[str, Any]:
    evaluation = asdict(evaluate(found, tau))
    return {metric: evaluation[metric] for metric in METRICS}


def held_out(data: str, window: Preprocessing, count: int) -> HeldOut:
    """The first, or evenly spread, test images of a data set."""
    samples = [sample for chunk in decoded_chunks(open_data(data, "test", window, count)) for sample in chunk]
    images, labels = np.stack([s.image for s in samples]), np.array([s.label for s in samples])
    return HeldOut(images, labels, tuple(s.box for s in samples), window)


def measured(plan: LocalizerPlan, study: Study) -> dict[str, Any]:
    """FP32, and every arm with every seed: width -> figures, and the range of each tensor."""
    subject = _Subject(plan, study)
    about = {"subject": subject.name, "test": plan.test_images}
    reference = study.ledger.result(partial(subject.float_accuracy, plan.test_images), **about)
    runs = []
    for seed in range(plan.seeds):
        for arm in plan.arms:
            source, made_in = subject.source(arm, seed)
            deciding = plan.deciding_images if arm in DECIDING_ARMS else None
            key = {**about, "arm": arm, "seed": seed, "widths": [width.name for width in plan.widths]}
            key |= {"images": source.description, "deciding": deciding}
            found = study.ledger.result(partial(subject.quality, source, deciding), **key)
            runs.append({"arm": arm, "seed": seed, "images": source.count, "made_in_s": made_in, **found})
            print(f"{plan.name}: {arm}, seed {seed}: {found['seconds']:.0f} s", flush=True)
    facts = {"name": plan.name, "model": plan.model.name, "test_images": plan.test_images}
    facts |= {"deciding_images": plan.deciding_images}
    return {**facts, "steps": {arm: route.steps for arm, route in plan.routes.items()}, "fp32": reference, "runs": runs}


class _Subject:
    """A localizer under study; what all arms need is made once, and not at all where the ledger has all figures."""

    def __init__(self, plan: LocalizerPlan, study: Study) -> None:
        self._plan, self._device = plan, study.device
        # Images and figures of another checkpoint are others.
        self._room = study.room / f"{plan.name}-{sha256_of(plan.model)[:8]}"
        self._room.mkdir(parents=True, exist_ok=True)
        self._card = checkpoint.card_of(plan.model)
        self._training = cache(partial(open_data, plan.data, "train", self._card.preprocessing))
        self._float = self._room / "model.onnx"
        stages.float_onnx(plan.model, self._float)
        self._reference = cache(self._measured_reference)

    @property
    def name(self) -> str:
        """With a part of the checkpoint's hash."""
        return self._room.name

    def float_accuracy(self, images: int) -> dict[str, Any]:
        """Of FP32 on so many held-out images."""
        return self._reference(images).accuracy

    def source(self, arm: str, seed: int) -> tuple[CalibrationSource, float | None]:
        """The images of an arm, and the seconds that making them took; None: nobody made them."""
        if arm == NOISE:
            return noise(self._plan.images, seed), None
        found = self.images(arm, seed)
        return found.source(), found.seconds if arm in self._plan.routes else None

    def images(self, arm: str, seed: int) -> ImageSet:
        """The images of any other arm than noise."""
        if arm == REAL:
            return drawn(self._room, "real", self._training, self._plan.images, seed)
        if arm == SEED_IMAGES:
            return drawn_of_each_class(self._room, "seeds", self._training, EACH, seed)
        route = self._plan.routes[arm]
        known, method = self._network(arm)
        known.teacher.model.to(self._device)
        request = Request(route.count, method, steps=route.steps, seed=seed)
        bundle = known.statistics if method == FDDA else None
        held = statistics.load(bundle, known.sha256, known.name) if bundle else None
        name = f"{arm}-{route.steps}-steps-{known.sha256[:8]}"
        built = method_of(request, known, held)
        return made(self._room, name, built, known.teacher, count=route.count, seed=seed)

    def quality(self, source: CalibrationSource, deciding: int | None) -> dict[str, Any]:
        """Of the model, calibrated with these images, at each width; and the ranges that they give.

        With `deciding`, W8A8 is judged on so many images, too.
        """
        reference = self._reference(self._plan.test_images)
        with tempfile.TemporaryDirectory() as name:
            files = quantized(self._float, source, Path(name), self._plan.widths, Stated())
            found: dict[str, Any] = {"widths": {w.name: reference.figures(path) for w, path in files.items()}}
            if deciding is not None:
                found["deciding"] = self._reference(deciding).figures(files[W8A8])
        return found | {"amax": observed_ranges(self._float, source, self._card.preprocessing)}

    def _measured_reference(self, images: int) -> Reference:
        held = held_out(self._plan.data, self._card.preprocessing, images)
        return Reference(held, held.outputs(self._float), self._card.tau)

    def _network(self, arm: str) -> tuple[KnownTeacher, str]:
        """What images of a synthetic arm are made for, and by which method."""
        if arm == GUIDE:
            return self._guided, FDDA
        return self._localizer, {PSAQ: PATCH_SIMILARITY, TOKEN: FDDA}[arm]

    @cached_property
    def _guided(self) -> KnownTeacher:
        return guide_teacher(str(self._guide()), Stated())

    @cached_property
    def _localizer(self) -> KnownTeacher:
        return localizer_teacher(self._plan.model)

    def _guide(self) -> Path:
        """The guide beside the model, or one that is trained here once."""
        beside = stages.guide_of(self._plan.model)
        if beside.exists() and statistics_of(beside).exists():
            return beside
        model = self._room / self._plan.model.name
        if not stages.guide_of(model).exists():
            for path in (self._plan.model, sidecar_of(self._plan.model)):
                shutil.copy(path, self._room)
        # As `make bundled` trains it, on images held in memory; in smaller batches, for photographs are few.
        recipe = adjusted(recipe_named("shapes"), cutmix=0.0, batch_size=GUIDE_BATCH)
        run = Run(self._card.preset, self._plan.data, recipe, images=self._plan.guide_images, device=self._device)
        guide, _ = stages.guide(GuideRun(run, self._plan.guide_epochs), model)
        return guide.artifact.path


def synthetic_sets(plan: LocalizerPlan, study: Study) -> dict[str, ImageSet]:
    """The first seed's images of each synthetic arm."""
    subject = _Subject(plan, study)
    return {arm: subject.images(arm, 0) for arm in plan.routes}


def pictures(plan: LocalizerPlan, study: Study, count: int) -> dict[str, NDArray[np.uint8]]:
    """The first images of each arm, (count, S, S, 3), as they were used."""
    subject = _Subject(plan, study)
    window = checkpoint.card_of(plan.model).preprocessing
    found = {arm: subject.images(arm, 0).images[:count] for arm in (REAL, *plan.routes)}
    mean, std = (np.array(values)[:, None, None] for values in (window.mean, window.std))
    pixels = (image_set.noise(count, window.image_size, 0) * std + mean) * 255
    return {**found, NOISE: pixels.round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)}
