"""What generated images are aligned with: a network's moments, global and by class, and FDDA's losses against them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calib.batchnorm import batchnorm_view, running_moments
from calib.losses import bns_loss, centralized_loss, distorted_loss
from calib.moments import Moments, batch_moments, relative_to, scale_of
from calib.observation import View
from calib.statistics import Statistics
from toolchain.errors import ModelError

MEAN_NOISE, VARIANCE_NOISE = 0.5, 1.0
"""Standard deviation of the published noise of L_D on a class's mean and variance, in any channel of any BatchNorm."""

UNCOUNTED = "the statistics do not say which classes the network mistakes: none is left out of L_D and L_C for it"


@dataclass(frozen=True)
class ClassTargets:
    """One layer's targets of L_C and L_D.

    Attributes:
        center: per class, (K, D).
        spread: standard deviation of the noise on it, (K, D).
    """

    center: Moments
    spread: Moments


@dataclass(frozen=True)
class Layer:
    """One layer's targets.

    Attributes:
        reference: global moments (D,), as they are.
        relative: compare in units of the reference's deviation; class targets are in these units already.
        by_class: None: only the global moments count in this layer.
    """

    reference: Moments
    relative: bool
    by_class: ClassTargets | None = None

    def compared(self, moments: Moments) -> Moments:
        """Moments (..., D) in the units of the losses."""
        return relative_to(self.reference, moments) if self.relative else moments


@dataclass(frozen=True)
class Alignment:
    """Everything that a batch of generated images is compared with.

    Attributes:
        view: what is looked at.
        layers: targets, one for each layer of the view.
        num_classes: that the network was found to have; None: nobody counted.
        classes: which the rows of the class targets are of.
        missing: parts of the method that cannot be had, one sentence each.
    """

    view: View
    layers: tuple[Layer, ...]
    num_classes: int | None = None
    classes: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()

    def losses(
        self, random_class: Sequence[Tensor], single_class: Sequence[Tensor], label: int, noise: torch.Generator
    ) -> dict[str, Tensor]:
        """L_BNS of the one batch; L_D and L_C of the other if its class has a target.

        Args:
            random_class: per layer, vectors (B, N, D) of the batch of random labels.
            single_class: likewise, of the batch of one class.
            label: of that class.
            noise: source of L_D's noise.
        """
        losses = {"bns": self.distance(random_class)}
        if label in self.classes:
            row = self.classes.index(label)
            pairs = [(layer, p) for layer, p in zip(self.layers, single_class, strict=True) if layer.by_class]
            seen = [layer.compared(batch_moments(p)) for layer, p in pairs]
            targets = [layer.by_class for layer, _ in pairs if layer.by_class]
            centers, spreads = [t.center.row(row) for t in targets], [t.spread.row(row) for t in targets]
            losses["distorted"] = distorted_loss(seen, centers, spreads, noise)
            losses["centralized"] = centralized_loss(seen, centers)
        return losses

    def distance(self, images: Sequence[Tensor], moments: Callable[[Tensor], Moments] = batch_moments) -> Tensor:
        """L_BNS: how far the moments of images are from those of all real ones.

        Args:
            images: per layer, vectors (B, N, D).
            moments: `batch_moments`, or `image_moments` for each image alone.

        Returns:
            of the batch, (), or of each image, (B,).
        """
        seen = [layer.compared(moments(p)) for layer, p in zip(self.layers, images, strict=True)]
        return bns_loss(seen, [layer.compared(layer.reference) for layer in self.layers])

    def deviation_ratio(self, moments: Sequence[Moments]) -> dict[str, float]:
        """Per layer, the standard deviation of `moments` over the real one: the median over channels."""
        relative = [relative_to(layer.reference, m) for layer, m in zip(self.layers, moments, strict=True)]
        return {name: float(r.variance.sqrt().median()) for name, r in zip(self.view.layers, relative, strict=True)}

    def check(self, num_classes: int, seen: Sequence[Tensor]) -> None:
        """Refuse a network other than the one that the targets are of.

        Args:
            num_classes: of the network.
            seen: per layer of the view, vectors (B, N, D) that were seen in it.

        Raises:
            ModelError: another number of classes or channels.
        """
        if self.num_classes not in (None, num_classes):
            raise ModelError(
                f"the statistics know {self.num_classes} classes, the model {num_classes}: use the model's own "
                "statistics."
            )
        for name, layer, positions in zip(self.view.layers, self.layers, seen, strict=True):
            if layer.reference.mean.shape[-1] != positions.shape[-1]:
                raise ModelError(
                    f"the statistics of '{name}' have {layer.reference.mean.shape[-1]} channels, the model has "
                    f"{positions.shape[-1]}: use the model's own statistics."
                )


def token_alignment(view: View, statistics: Statistics, device: torch.device) -> Alignment:
    """Alignment of a transformer, which has nothing but its measured statistics (spec/fdda.md, route 2).

    In units of the measured deviation: moments of a residual stream as they are would be compared in its loudest
    channels alone.
    """
    references = [statistics.overall[name].to(device) for name in view.layers]
    return _measured_alignment(view, references, statistics, relative=True)


def batchnorm_alignment(model: nn.Module, statistics: Statistics | None, *, relative: bool) -> Alignment:
    """Alignment with the running statistics for L_BNS, and with measured class centers for L_C and L_D.

    Args:
        model: has BatchNorms.
        statistics: of this network; None: the running statistics are all there is.
        relative: compare in units of the running deviation, with the measured spread as L_D's noise; False: moments as
            they are, and the published noise.

    Raises:
        ModelError: no BatchNorm, or statistics of other layers.
    """
    view, references = batchnorm_view(model), running_moments(model)
    if statistics is None:
        missing = "no calibration statistics: L_D and L_C were left out, L_BNS and cross-entropy remain"
        return Alignment(view, tuple(Layer(reference, relative) for reference in references), missing=(missing,))
    if tuple(statistics.overall) != view.layers:
        raise ModelError("the statistics are of other layers than the network's BatchNorms: use the network's own.")
    return _measured_alignment(view, references, statistics, relative=relative)


def _measured_alignment(
    view: View, references: Sequence[Moments], statistics: Statistics, *, relative: bool
) -> Alignment:
    """With one reference for each layer of the view, and the centers of the statistics."""
    rows, classes = _guiding(statistics)
    layers = []
    for name, reference in zip(view.layers, references, strict=True):
        by_class = None
        if name in statistics.centers and rows:
            held = statistics.centers[name]
            center, spread = (m.row(rows).to(reference.mean.device) for m in (held.center, held.spread))
            by_class = _class_targets(reference, center, spread, relative=relative)
        layers.append(Layer(reference, relative, by_class))
    return Alignment(view, tuple(layers), len(statistics.population.counts), classes, _missing(statistics))


def _class_targets(reference: Moments, center: Moments, spread: Moments, *, relative: bool) -> ClassTargets:
    if relative:
        unit = scale_of(reference)
        noise = Moments(spread.mean / unit, spread.variance / unit**2)
        return ClassTargets(relative_to(reference, center), noise)
    published = (torch.full_like(center.mean, by) for by in (MEAN_NOISE, VARIANCE_NOISE))
    return ClassTargets(center, Moments(*published))


def _guiding(statistics: Statistics) -> tuple[list[int], tuple[int, ...]]:
    """The centers that guide, all but those of classes that the network mistakes: their rows and classes."""
    population = statistics.population
    rows = [row for row, c in enumerate(population.classes) if c not in population.mistaken and statistics.centers]
    return rows, tuple(population.classes[row] for row in rows)


def _missing(statistics: Statistics) -> tuple[str, ...]:
    if not statistics.centers:
        return ("no layer separates the classes: L_D and L_C were left out",)
    population = statistics.population
    without = len(population.counts) - len(population.classes)
    reasons = {"without a center": without, "that the network mistakes for others": len(population.mistaken)}
    left_out = (f"{count} classes {reason}: left out of L_D and L_C" for reason, count in reasons.items() if count)
    unknown = () if population.recognized else (UNCOUNTED,)
    return (*left_out, *unknown)
