"""What a protocol counts over a data set, against the threshold tau."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolchain.boxes import levels_from_map, overlaps_by_tau
from toolchain.preprocessing import Box
from toolchain.protocols import Protocol


class Part(NamedTuple):
    """Some images of a data set: what a localizer says of them, and what is true.

    Attributes:
        logits: (B, C).
        maps: (B, h, w), of the class that the protocol reads boxes off.
        labels: (B,).
        boxes: all true boxes of each image, pixels of the network's input.
    """

    logits: NDArray[np.float32]
    maps: NDArray[np.float32]
    labels: NDArray[np.int64]
    boxes: Sequence[Sequence[Box]]


@dataclass(frozen=True)
class Curves:
    """Rates over a data set, in percent.

    Attributes:
        protocol: by which was counted.
        images: number of images.
        top1, top5: classification accuracy; no tau has a part in it.
        constant_maps: images whose map told nothing.
        taus: (T,).
        rates: key of each metric -> (T,).
    """

    protocol: Protocol
    images: int
    top1: float
    top5: float
    constant_maps: int
    taus: NDArray[np.float64]
    rates: Mapping[str, NDArray[np.float64]]

    def at(self, key: str, tau: float) -> float:
        """The metric `key` at a threshold that is one of `taus`."""
        return float(self.rates[key][np.flatnonzero(self.taus == tau)[0]])

    def best_taus(self) -> dict[str, float]:
        """Key of each metric -> its threshold: its own best one, or the first metric's for all (see `Protocol`).

        The middle one where several are best.
        """
        first = self.protocol.metrics[0].key
        return {
            metric.key: self._best(metric.key if self.protocol.own_taus else first) for metric in self.protocol.metrics
        }

    def _best(self, key: str) -> float:
        best = np.flatnonzero(self.rates[key] == self.rates[key].max())
        return float(self.taus[best[len(best) // 2]])


def curves_from_parts(protocol: Protocol, parts: Iterable[Part], image_size: int, taus: NDArray[np.float64]) -> Curves:
    """Count by a protocol, image after image.

    Of an image nothing is kept: memory is that of one part, and 8 bytes per metric and tau, however many images.

    Args:
        protocol: see there.
        parts: at least one image in all.
        image_size: side S of the network's input, pixels.
        taus: (T,), fractions of a map's maximum.
    """
    hits = {metric.key: np.zeros(len(taus), np.int64) for metric in protocol.metrics}
    images = first = five = constant = 0
    for part in parts:
        ranks = ranks_of(part.logits, part.labels)
        images += len(ranks)
        first += int((ranks < 1).sum())
        five += int((ranks < 5).sum())
        for map_, boxes, rank in zip(part.maps, part.boxes, ranks, strict=True):
            levels = levels_from_map(map_, image_size, protocol.rules)
            constant += not levels.any()
            found = overlaps_by_tau(levels, protocol.truths(boxes, image_size), taus, protocol.rules)
            for metric in protocol.metrics:
                if metric.within is None or rank < metric.within:
                    hits[metric.key] += found >= metric.iou
    return Curves(
        protocol,
        images=images,
        top1=100 * first / images,
        top5=100 * five / images,
        constant_maps=constant,
        taus=taus,
        rates={key: 100 * count / images for key, count in hits.items()},
    )


def ranks_of(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes are predicted before the true one: (B, C), (B,) -> (B,). Of equals the lower index is first."""
    true = np.take_along_axis(logits, labels[:, None], 1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return np.asarray(((logits > true) | ((logits == true) & earlier)).sum(1))
