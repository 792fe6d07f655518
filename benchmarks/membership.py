"""Whether somebody who holds an image can tell from the class centers that the image is behind one of them.

    python benchmarks/membership.py -o docs/benchmarks/membership.json
    python benchmarks/membership.py --photos .photos -o docs/benchmarks/membership-photos.json

The centre c of n images is nearer to each of them than to others of the class, by 1/n of the way. With the class mean m
that others would have and the deviation s per channel, known from images of one's own, the score of an image f is
`sum (f - m)(c - m) / s^2` (after Homer et al. 2008, "Resolving individuals contributing trace amounts of DNA").

Features, models and images are those of `privacy.py`. The model was trained on the members, too, so what it gives away
of them by itself is in the figure.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from nearness import Vectors, Z
from numpy.typing import NDArray
from privacy import real_images, seen, subject
from record import written

from calib import statistics
from toolchain.teachers import KnownTeacher

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Membership:
    """How well members are told from others.

    Attributes:
        members: images behind the centers.
        others: images that are not.
        auc: probability that a member scores higher than another image of any class; 0.5: a coin does as well.
        interval: of it, 95 %.
    """

    members: int
    others: int
    auc: float
    interval: tuple[float, float]


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="DIR", help="What `make finetuned` made, in place of shapes.")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    known, data = subject(options.photos)
    real = real_images(known, data)
    members, held_out = ((seen(known, real[n].images, n).features, real[n].labels) for n in ("train", "test"))
    found = membership(members, held_out, _centers(known))
    counted = {"images_per_class": np.bincount(members[1]).tolist(), "channels": members[0].shape[1]}
    record = {"model": Path(known.name).name, "data": data.partition(":")[0], **counted, **asdict(found)}
    print(written(record, options.output))


def membership(
    members: tuple[Vectors, Labels], held_out: tuple[Vectors, Labels], centers: Mapping[int, Vectors]
) -> Membership:
    """Score members and half of the held-out images; the other half is what the curious have of their own.

    Args:
        members: features (N, D) and classes (N,) of images behind the centers.
        held_out: likewise, of others.
        centers: class -> its center (D,).
    """
    inside, outside = [], []
    for label, center in centers.items():
        known = held_out[0][held_out[1] == label]
        own, asked = known[::2], known[1::2]
        mean, variance = own.mean(0), own.var(0) + np.finfo(np.float32).tiny
        direction = (center - mean) / variance
        inside.append((members[0][members[1] == label] - mean) @ direction)
        outside.append((asked - mean) @ direction)
    higher, lower = np.concatenate(inside), np.concatenate(outside)
    auc = float((higher[:, None] > lower[None]).mean())
    half = Z * _deviation(auc, len(higher), len(lower))
    return Membership(len(higher), len(lower), auc, (auc - half, auc + half))


def _deviation(auc: float, members: int, others: int) -> float:
    """Standard error of an area under the curve (Hanley and McNeil 1982)."""
    both, either = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (members - 1) * (both - auc**2) + (others - 1) * (either - auc**2)
    return math.sqrt(spread / (members * others))


def _centers(known: KnownTeacher) -> dict[int, Vectors]:
    """Class -> its center at the last LayerNorm, as the bundle has it."""
    assert known.statistics is not None
    bundle = statistics.load(known.statistics, known.sha256, known.name)
    centers = bundle.centers[known.view.layers[-1]].center.mean.numpy()
    return dict(zip(bundle.population.classes, centers, strict=True))


if __name__ == "__main__":
    main()
