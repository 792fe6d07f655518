"""What leaves the place where the data may be: class statistics of a network's layers, never an image (spec/fdda.md).

Per layer, a LayerNorm's input in a transformer and a BatchNorm's in a convolutional network: global moments, and for
each class with enough images a center and the spread around it. One pass over the data, sums in float64, nothing kept
per image.

Two things would give single images away, and are refused. A center of a few images: it needs `min_images`. And the
difference between the global sums and the centers: images of smaller classes enter the global moments only if there
are `min_images` of them together.
"""

import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from calib.moments import Moments, image_moments, scale_of
from calib.observation import View, frozen, observing
from calib.teacher import Teacher
from toolchain import artifacts
from toolchain.artifacts import Artifact
from toolchain.errors import ArtifactError, DataError, ModelError, UsageError
from toolchain.progress import Progress, silent

KIND = "statistics"
HEADER = "lctr"
"""The one key of the safetensors header: several would be written in another order each time."""
SEPARATION_SHARE = 0.5
"""Centers are kept for the layers whose class separation is at least this share of the best layer's."""
RECOGNIZED_SHARE = 0.5
"""Of a class's images that the network has to classify right for its center to guide anything."""

Chooser = Callable[[Mapping[str, float]], tuple[str, ...]]
"""Class separation by layer -> the layers that centers are kept for."""


@dataclass(frozen=True)
class Centers:
    """One layer's class centers.

    Attributes:
        center: per class, moments over all positions of all its images, (K, D).
        spread: per class, standard deviation over its images of the image's mean and of the image's variance, (K, D).
    """

    center: Moments
    spread: Moments


@dataclass(frozen=True)
class Population:
    """Who was counted.

    Attributes:
        counts: images per class, length C.
        recognized: of those, the images that the network itself classified right, length C; None: nobody counted, as
            in statistics of version 0.1.
        min_images: the fewest images a center is made of.
        classes: the K classes that have a center, ascending.
        pooled: classes with too few images for a center, counted in the global moments only.
        left_out: classes with too few images even together: counted nowhere.
    """

    counts: tuple[int, ...]
    recognized: tuple[int, ...] | None
    min_images: int
    classes: tuple[int, ...]
    pooled: tuple[int, ...]
    left_out: tuple[int, ...]

    @property
    def mistaken(self) -> tuple[int, ...]:
        """Classes whose center is of images that the network takes for something else.

        The published method leaves out the classes whose one center image the network gets wrong. A center of several
        images is left out when it gets more than half of them wrong.
        """
        right = self.recognized or self.counts
        return tuple(c for c in self.classes if right[c] < RECOGNIZED_SHARE * self.counts[c])


@dataclass(frozen=True)
class Statistics:
    """Statistics of one model on one data set.

    Attributes:
        population: who was counted.
        overall: layer -> global moments (D,), in the order the layers run.
        separation: layer -> `class_separation`; empty where fewer than two classes have a center.
        centers: layer -> centers, for the layers that were chosen.
    """

    population: Population
    overall: Mapping[str, Moments]
    separation: Mapping[str, float]
    centers: Mapping[str, Centers]


def collect(
    teacher: Teacher,
    view: View,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    min_images: int = 8,
    chosen: Chooser | None = None,
    progress: Progress = silent,
) -> Statistics:
    """Statistics of what a view sees.

    Args:
        teacher: the network that looks at the images.
        view: where it is looked at.
        batches: images (B, 3, H, W) float32, normalized, and labels (B,) integer.
        min_images: the fewest images that a center, or the global moments of the smaller classes, may stand for.
        chosen: which layers keep their centers; None: `well_separated`.
        progress: counts batches.

    Raises:
        UsageError: `min_images` below 2.
        DataError: a label out of range, or fewer than `min_images` images in all.
        ModelError: a layer is missing or does not run, or its input is not finite.
    """
    if min_images < 2:
        raise UsageError(f"min_images is {min_images}, but a center of one image is that image: give at least 2.")
    classes = teacher.num_classes
    sums: list[_Sums] = []
    recognized = torch.zeros(classes, dtype=torch.int64)
    total = operator.length_hint(batches)
    with frozen(teacher.model), torch.inference_mode(), observing(teacher.model, view) as observation:
        for done, (images, labels) in enumerate(batches, 1):
            _check_labels(labels, classes)
            recognized += labels[teacher.logits(images).argmax(1).cpu() == labels].bincount(minlength=classes)
            seen = observation.take()
            sums = sums or [_Sums(classes, positions.shape[-1]) for positions in seen]
            for layer_sums, positions in zip(sums, seen, strict=True):
                layer_sums.add(labels.cpu(), image_moments(positions.double()))
            progress(done, max(done, total))
    counts = sums[0].count if sums else torch.zeros(classes, dtype=torch.float64)
    for layer, layer_sums in zip(view.layers, sums, strict=bool(sums)):
        if not layer_sums.finite:
            raise ModelError(f"module '{layer}' received infinite or undefined values: check the model's weights.")
    population = _population(counts, recognized, min_images)
    return _summarize(population, dict(zip(view.layers, sums, strict=bool(sums))), chosen or well_separated)


def class_separation(center: Tensor, spread: Tensor, counts: Tensor) -> float:
    """How far classes stand apart: a silhouette, `(b - a) / max(a, b)`, averaged over classes.

    a is a class's mean squared distance from its images to its own center, b to the nearest other center. With squared
    distances both follow from centers and spreads alone (b = a + squared distance of the centers), so no image has to
    be remembered. The distance of two centers estimated from n images is too large by a/n each, which is subtracted:
    classes that do not differ get about 0 or less, however few their images.

    Args:
        center: per class, mean of the images' mean vectors, in units of the channel's global deviation, (K, D), K > 1.
        spread: per class, standard deviation of the images' mean vectors, in the same units, (K, D).
        counts: images per class, (K,), each at least 2.

    Returns:
        at most 1; near 1: images sit on their centers, far from all others.
    """
    # The divisor n - 1: a is estimated from the same images as the center.
    within = spread.square().sum(1) * counts / (counts - 1)
    error = within / counts
    between = torch.cdist(center, center).square() - error[:, None] - error[None]
    nearest = between.fill_diagonal_(torch.inf).amin(1)
    tiny = torch.finfo(within.dtype).tiny
    return float((nearest / (within + nearest.clamp_min(tiny))).mean())


def well_separated(separation: Mapping[str, float]) -> tuple[str, ...]:
    """The layers that centers are kept for: at least half the separation of the best layer, and above 0.

    The published rule, the second half of the layers, assumes what is measured here.
    """
    best = max(separation.values(), default=0.0)
    return tuple(layer for layer, value in separation.items() if best > 0 and value >= SEPARATION_SHARE * best)


def save(
    statistics: Statistics,
    path: Path,
    network: str,
    *,
    class_names: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Path] | None = None,
    code: str = "",
) -> Artifact:
    """Write the statistics as safetensors, bound to the network they were measured on.

    Args:
        statistics: to be written, as float32.
        path: of the file.
        network: hash that identifies the network; goes into the file.
        class_names: by class index, so that the sidecar can name the classes without a center.
        parameters: of the command, for the sidecar.
        inputs: role -> file that they were made from, for the sidecar.
        code: version of the code, for the sidecar.

    Raises:
        ArtifactError: the place cannot be written to.
    """
    summary = {
        "population": asdict(statistics.population),
        "layers": list(statistics.overall),
        "separation": dict(statistics.separation),
        "center_layers": list(statistics.centers),
    }
    header = {"model_sha256": network, "summary": summary}
    with artifacts.writing(path) as temporary:
        save_file(_tensors_from_statistics(statistics), temporary, metadata={HEADER: json.dumps(header)})
    facts = {**summary, "model_sha256": network, "without_center": without_center(statistics.population, class_names)}
    return artifacts.seal(path, KIND, parameters=parameters, inputs=inputs, metadata=facts, code=code)


def without_center(population: Population, class_names: Sequence[str]) -> dict[str, list[str]]:
    """The classes that have no center, by name, and what became of their images.

    Args:
        population: who was counted.
        class_names: by class index; without them the classes are named by their index.

    Returns:
        `pooled`: in the global moments; `left_out`: nowhere; `absent`: there was no image.
    """
    absent = tuple(c for c, images in enumerate(population.counts) if not images)
    groups = {"pooled": population.pooled, "left_out": population.left_out, "absent": absent}
    return {fate: [class_names[c] if class_names else str(c) for c in group] for fate, group in groups.items()}


def load(path: Path, network: str, name: str) -> Statistics:
    """Read statistics that were measured on exactly this network.

    Args:
        path: of the file.
        network: hash that identifies the network, as given to `save`.
        name: what messages call it.

    Raises:
        ArtifactError: missing, changed, cut short, of another kind, or measured on another network.
    """
    artifacts.load(path, KIND)
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if header["model_sha256"] != network:
            raise ArtifactError(
                f"{path} holds the statistics of another model than {name} (sha256 differs): "
                "run `lctr statistics` on this model."
            )
        return _statistics_from_tensors(tensors, header["summary"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is no statistics file of this version: run `lctr statistics` again.") from error


class _Sums:
    """Sums of one layer's per-image moments, per class, in float64."""

    def __init__(self, classes: int, channels: int) -> None:
        self.count = torch.zeros(classes, dtype=torch.float64)
        self.mean, self.mean_squared, self.variance, self.variance_squared = torch.zeros(
            4, classes, channels, dtype=torch.float64
        )

    def add(self, labels: Tensor, moments: Moments) -> None:
        mean, variance = moments.mean.cpu(), moments.variance.cpu()
        self.count.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64))
        self.mean.index_add_(0, labels, mean)
        self.mean_squared.index_add_(0, labels, mean.square())
        self.variance.index_add_(0, labels, variance)
        self.variance_squared.index_add_(0, labels, variance.square())

    @property
    def finite(self) -> bool:
        return bool((self.mean_squared.isfinite() & self.variance_squared.isfinite()).all())

    def overall(self, classes: Sequence[int]) -> Moments:
        """Moments over all positions of all images of `classes`."""
        # The variance of a whole is the mean of its parts' variances plus the variance of its parts' means.
        rows = list(classes)
        n = self.count[rows].sum()
        mean = self.mean[rows].sum(0) / n
        between = self.mean_squared[rows].sum(0) / n - mean.square()
        return Moments(mean, self.variance[rows].sum(0) / n + between.clamp_min(0))

    def centers(self, classes: Sequence[int]) -> Centers:
        """Centers and spreads, (K, D)."""
        rows = list(classes)
        n = self.count[rows, None]
        mean, variance = self.mean[rows] / n, self.variance[rows] / n
        # Rounding can leave a difference of equal numbers just below 0.
        mean_spread = (self.mean_squared[rows] / n - mean.square()).clamp_min(0)
        variance_spread = (self.variance_squared[rows] / n - variance.square()).clamp_min(0)
        return Centers(Moments(mean, variance + mean_spread), Moments(mean_spread.sqrt(), variance_spread.sqrt()))


def _check_labels(labels: Tensor, num_classes: int) -> None:
    outside = sorted({int(label) for label in labels if not 0 <= label < num_classes})
    if outside:
        raise DataError(f"labels {outside} are not among the model's {num_classes} classes: check the data set.")


def _population(counts: Tensor, recognized: Tensor, min_images: int) -> Population:
    images = tuple(int(n) for n in counts)
    classes = tuple(c for c, n in enumerate(images) if n >= min_images)
    small = tuple(c for c, n in enumerate(images) if 0 < n < min_images)
    enough = sum(images[c] for c in small) >= min_images
    if not classes and not enough:
        raise DataError(
            f"the data set has {sum(images)} images, but statistics need at least {min_images}: "
            "add images (with fewer, the statistics would give single ones away)."
        )
    right = tuple(int(n) for n in recognized)
    return Population(images, right, min_images, classes, small if enough else (), () if enough else small)


def _summarize(population: Population, sums: Mapping[str, _Sums], chosen: Chooser) -> Statistics:
    counted = population.classes + population.pooled
    overall = {layer: s.overall(counted) for layer, s in sums.items()}
    centers = {layer: s.centers(population.classes) for layer, s in sums.items()}
    separation = {}
    if len(population.classes) > 1:
        counts = torch.tensor([population.counts[c] for c in population.classes], dtype=torch.float64)
        for layer, found in centers.items():
            unit = scale_of(overall[layer])
            separation[layer] = class_separation(found.center.mean / unit, found.spread.mean / unit, counts)
    return Statistics(
        population,
        {layer: _single(moments) for layer, moments in overall.items()},
        separation,
        {
            layer: Centers(_single(centers[layer].center), _single(centers[layer].spread))
            for layer in (chosen(separation) if population.classes else ())
        },
    )


def _single(moments: Moments) -> Moments:
    """In float32, as the model computes: the variance of an outlier channel can pass 65504, where float16 ends."""
    return Moments(moments.mean.float(), moments.variance.float())


def _tensors_from_statistics(statistics: Statistics) -> dict[str, Tensor]:
    named = {f"overall.{layer}": moments for layer, moments in statistics.overall.items()}
    for layer, centers in statistics.centers.items():
        named |= {f"center.{layer}": centers.center, f"spread.{layer}": centers.spread}
    return {f"{name}.{field}": value.contiguous() for name, m in named.items() for field, value in m._asdict().items()}


def _statistics_from_tensors(tensors: Mapping[str, Tensor], summary: Mapping[str, Any]) -> Statistics:
    def moments(name: str) -> Moments:
        return Moments(tensors[f"{name}.mean"], tensors[f"{name}.variance"])

    # JSON has lists where the data classes have tuples.
    population: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in summary["population"].items()}
    return Statistics(
        Population(**{"recognized": None, **population}),
        {layer: moments(f"overall.{layer}") for layer in summary["layers"]},
        summary["separation"],
        {layer: Centers(moments(f"center.{layer}"), moments(f"spread.{layer}")) for layer in summary["center_layers"]},
    )
