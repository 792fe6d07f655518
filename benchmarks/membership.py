"""Whether somebody who holds an image can tell from a class center that the image is behind it.

The centre c of n images is nearer to each of them than to others of the class, by 1/n of the way. With the class mean m
that others would have and the deviation s per channel, known from images of one's own, the score of an image f is
`sum (f - m)(c - m) / s^2` (after Homer et al. 2008, "Resolving individuals contributing trace amounts of DNA").
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from nearness import Vectors, Z
from numpy.typing import NDArray

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
