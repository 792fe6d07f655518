"""`lctr build --precision auto`: every precision is built and measured where it will run, and the fastest one ships.

Candidates come in order of precision, the reference first. One takes the place of the one before it if it loses no more
than the bound allows and is faster beyond noise: by the whole of the ratio's 95 % interval (`engines.bootstrap`). What
is not proved faster is not shipped, for the precision above it is the more accurate one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engines.benchmark import Measurement
from engines.bootstrap import Interval, ratio_of_medians
from toolchain.errors import ModelError
from toolchain.sensitivity import within


@dataclass(frozen=True)
class Candidate:
    """One precision, measured.

    Attributes:
        name: `FP32`, `FP16`, `INT8`; the file's where two have the same, or it does not say what it is.
        lost: points of GT-Known Loc or Top-1 Loc against the reference, whichever lost more; negative: both gained.
        median: milliseconds, over all rounds.
        rounds: samples of each round, milliseconds; round k of every candidate was measured beside the others' k.
        problems: what is wrong with its outputs.
    """

    name: str
    lost: float
    median: float
    rounds: tuple[tuple[float, ...], ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What ships, and why in one sentence."""

    winner: str
    verdict: str


def candidate_from_measurement(name: str, lost: float, measured: Measurement) -> Candidate:
    """A candidate from its row of a benchmark."""
    return Candidate(name, lost, measured.timings.median, measured.rounds, measured.problems)


def speed(of: Candidate, against: Candidate) -> Interval:
    """How many times as fast one is as the other."""
    return ratio_of_medians(against.rounds, of.rounds)


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
        if speed(challenger, winner).wholly_above(1):
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
        f"{winner.name} is worth it: {found.value:.2f}x as fast as {rival.name} ({found.range}) at "
        f"{_signed(-winner.lost)} points"
    )


def _objection(loser: Candidate, winner: Candidate, max_drop: float) -> str:
    if loser.problems:
        return f"{loser.name} returns broken outputs ({loser.problems[0]})"
    if not within(loser.lost, max_drop):
        return f"{loser.name} loses {loser.lost:.2f} points, more than {max_drop:g}"
    found = speed(loser, winner)
    told = f"{found.value:.2f}x, {found.range}"
    if found.wholly_below(1):
        return f"{loser.name} is slower here ({told})"
    return f"{loser.name} is no faster beyond noise ({told})"


def _signed(points: float) -> str:
    return f"{points:+.2f}" if round(points, 2) else "0.00"
