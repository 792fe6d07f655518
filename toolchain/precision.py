"""`lctr build --precision auto`: every precision is built and measured where it will run, and the fastest one ships.

Candidates come in order of precision, the reference first. One takes the place of the one before it if it loses no more
than the bound allows and is faster beyond noise: in every interleaved round. What is not proved faster is not shipped,
for the precision above it is the more accurate one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engines.benchmark import Measurement, Settings
from toolchain.errors import ModelError
from toolchain.sensitivity import within


@dataclass(frozen=True)
class Candidate:
    """One precision, measured.

    Attributes:
        name: `FP32`, `FP16`, `INT8`; the file's where two have the same, or it does not say what it is.
        lost: points of GT-Known Loc or Top-1 Loc against the reference, whichever lost more; negative: both gained.
        median: milliseconds, over all rounds.
        rounds: median of each round, milliseconds; round k of every candidate was measured beside the others' k.
        problems: what is wrong with its outputs.
    """

    name: str
    lost: float
    median: float
    rounds: tuple[float, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Speed:
    """How many times as fast as another: of the overall medians, and the range over the rounds."""

    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """With the range, which is what says whether there is a difference."""
        return f"{self.value:.2f}x, {self.low:.2f} to {self.high:.2f} over the rounds"


@dataclass(frozen=True)
class Decision:
    """What ships, and why in one sentence."""

    winner: str
    verdict: str


def candidate_from_measurement(name: str, lost: float, measured: Measurement, settings: Settings) -> Candidate:
    """A candidate from its row of a benchmark, whose samples stand round after round."""
    rounds = np.median(np.reshape(measured.timings.milliseconds, (settings.rounds, settings.iterations)), axis=1)
    return Candidate(name, lost, measured.timings.median, tuple(rounds.tolist()), measured.problems)


def speed(of: Candidate, against: Candidate) -> Speed:
    """How many times as fast one is as the other."""
    single = [theirs / mine for mine, theirs in zip(of.rounds, against.rounds, strict=True)]
    return Speed(against.median / of.median, min(single), max(single))


def decision(candidates: Sequence[Candidate], max_drop: float) -> Decision:
    """The fastest candidate within the bound, and the verdict.

    Args:
        candidates: in order of precision, the reference first; at least two.
        max_drop: points that one may lose against the reference.

    Raises:
        ModelError: the outputs of the reference are broken, so that nothing can be held against it.
    """
    reference = candidates[0]
    if reference.problems:
        raise ModelError(f"{reference.name} returns broken outputs ({reference.problems[0]}): export the model again.")
    fit = [c for c in candidates if not c.problems and within(c.lost, max_drop)]
    winner = reference
    for challenger in fit[1:]:
        if speed(challenger, winner).low > 1:
            winner = challenger
    return Decision(winner.name, _verdict(candidates, fit, winner, max_drop))


def _verdict(candidates: Sequence[Candidate], fit: Sequence[Candidate], winner: Candidate, max_drop: float) -> str:
    lower = candidates[candidates.index(winner) + 1 :]
    if lower:
        gain = speed(winner, candidates[0])
        faster = f" ({gain.value:.2f}x as fast as {candidates[0].name})" if winner is not candidates[0] else ""
        return f"ship {winner.name}{faster}: {'; '.join(_objection(c, winner, max_drop) for c in lower)}"
    rival = min((c for c in fit if c is not winner), key=lambda c: c.median)
    found = speed(winner, rival)
    return (
        f"{winner.name} is worth it: {found.value:.2f}x as fast as {rival.name} ({found.low:.2f} to {found.high:.2f} "
        f"over the rounds) at {_signed(-winner.lost)} points"
    )


def _objection(loser: Candidate, winner: Candidate, max_drop: float) -> str:
    if loser.problems:
        return f"{loser.name} returns broken outputs ({loser.problems[0]})"
    if not within(loser.lost, max_drop):
        return f"{loser.name} loses {loser.lost:.2f} points, more than {max_drop:g}"
    found = speed(loser, winner)
    if found.high < 1:
        return f"{loser.name} is slower here ({found.text})"
    return f"{loser.name} is no faster beyond noise ({found.text})"


def _signed(points: float) -> str:
    return f"{points:+.2f}" if round(points, 2) else "0.00"
