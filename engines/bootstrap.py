"""How sure a figure is: 95 % intervals of what repeated rounds of samples amount to.

Samples within a round are correlated (clock, caches, whatever else the machine does meanwhile), so whole rounds are
resampled, with replacement, and not samples: Efron and Tibshirani, An Introduction to the Bootstrap (1993), sections
8.6 (blocks) and 13.3 (percentile intervals). Sessions that were measured in turns share their rounds, and so the
resampled ones: what hit all of them alike cancels in a ratio. With a handful of rounds such an interval is somewhat
too narrow.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
RESAMPLES = 1000
LEVEL = 0.95
LEAST_ROUNDS = 2
"""One round says nothing of how much rounds differ."""
CHUNK = 1 << 20
"""Samples drawn at a time: 8 MiB of each session."""


@dataclass(frozen=True)
class Interval:
    """A figure, and the 95 % interval that the rounds leave for it.

    Attributes:
        value: of all samples.
        low, high: bounds of the interval; None: a single round, of which nobody knows how far it is off.
    """

    value: float
    low: float | None
    high: float | None

    @property
    def range(self) -> str:
        """The interval in words, which is what says whether there is a difference."""
        if self.low is None or self.high is None:
            return "a single round, noise unknown"
        return f"{self.low:.2f} to {self.high:.2f} at 95 %"

    def wholly_above(self, bound: float) -> bool:
        """Every value of the interval is over `bound`; False where there is no interval."""
        return self.low is not None and self.low > bound

    def wholly_below(self, bound: float) -> bool:
        """Every value of the interval is under `bound`; False where there is no interval."""
        return self.high is not None and self.high < bound


def bootstrap(statistic: Callable[..., Floats], *samples: Floats, seed: int = 0) -> Interval:
    """A statistic over rounds of samples, with its interval.

    Args:
        statistic: takes as many arrays (B, R n_k) as there are `samples` and gives (B,): one value per resample.
        samples: (R, n_k) each: R rounds of n_k samples. Round r of all of them was measured side by side.
        seed: of the resampling.
    """
    rounds = len(samples[0])
    value = float(statistic(*(each.reshape(1, -1) for each in samples))[0])
    if rounds < LEAST_ROUNDS:
        return Interval(value, None, None)
    drawn = np.concatenate(
        [
            statistic(*(each[chosen].reshape(len(chosen), -1) for each in samples))
            for chosen in _chosen(rounds, max(each.size for each in samples), seed)
        ]
    )
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def ratio_of_medians(mine: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> Interval:
    """How many times `base`'s median `mine`'s is: rounds of samples, in the same unit."""
    return bootstrap(
        lambda ours, theirs: np.median(ours, axis=-1) / np.median(theirs, axis=-1), np.array(mine), np.array(base)
    )


def _chosen(rounds: int, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Which rounds each resample consists of, (B, R), a chunk of them at a time."""
    rng = np.random.default_rng(seed)
    at_once = max(1, CHUNK // size)
    for start in range(0, RESAMPLES, at_once):
        yield rng.integers(rounds, size=(min(at_once, RESAMPLES - start), rounds))
