"""How far outputs are from a reference's, and what is wrong with outputs whatever the reference says."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Agreement:
    """One output against the reference's of the same name, over all feeds.

    Attributes:
        max_abs: largest absolute difference.
        snr_db: signal-to-noise ratio, as `snr_db`.
        cosine: of the angle between both; 0 where one of them is zero throughout.
    """

    max_abs: float
    snr_db: float
    cosine: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, and JSON knows no infinity: `snr_db` is None where both are `equal`, or the reference is zero."""
        return {
            "equal": self.max_abs == 0,
            "max_abs": self.max_abs,
            "snr_db": self.snr_db if math.isfinite(self.snr_db) else None,
            "cosine": self.cosine,
        }


def agreements(mine: Sequence[Outputs], reference: Sequence[Outputs]) -> dict[str, Agreement]:
    """Output -> agreement; left out where the reference lacks the name or shape, or a value is not finite."""
    found = {}
    for name in mine[0]:
        if name not in reference[0] or mine[0][name].shape != reference[0][name].shape:
            continue
        ours, theirs = (_values(side, name).astype(np.float64) for side in (mine, reference))
        if np.isfinite(ours).all() and np.isfinite(theirs).all():
            found[name] = Agreement(float(np.abs(ours - theirs).max()), snr_db(ours, theirs), _cosine(ours, theirs))
    return found


def output_problems(outputs: Sequence[Outputs], feeds: Sequence[Outputs] = ()) -> tuple[str, ...]:
    """What is wrong with the outputs of several batches, apart from any reference.

    Values that are not finite; one value everywhere; or the same answer to all items of `feeds`, where those differ.
    """
    differ = any(not _all_same(items) for items in _items(feeds).values())
    problems = []
    for name in outputs[0]:
        values = _values(outputs, name)
        if not np.isfinite(values).all():
            problems.append(f"{name} is not finite in {int((~np.isfinite(values)).sum())} of {values.size} values")
        elif values.size > 1 and (values == values[0]).all():
            problems.append(f"{name} is {values[0]:g} everywhere")
        elif differ and _all_same(items := _items(outputs)[name]):
            problems.append(f"{name} is the same for all {len(items)} inputs")
    return tuple(problems)


def snr_db(values: NDArray[Any], reference: NDArray[Any]) -> float:
    """`10 log10(sum reference^2 / sum (reference - values)^2)`; infinity where they are equal.

    Minus infinity where the reference is zero throughout and the values are not.
    """
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - values).sum())
    if noise == 0 or signal == 0:
        return math.inf if noise == 0 else -math.inf
    return 10 * math.log10(signal / noise)


def _values(batches: Sequence[Outputs], name: str) -> NDArray[Any]:
    return np.concatenate([np.ravel(b[name]) for b in batches])


def _items(batches: Sequence[Outputs]) -> dict[str, NDArray[Any]]:
    """Name -> the items of all batches in one."""
    return {name: np.concatenate([np.atleast_1d(b[name]) for b in batches]) for name in (batches[0] if batches else ())}


def _all_same(items: NDArray[Any]) -> bool:
    return len(items) > 1 and bool((items == items[0]).all())


def _cosine(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    length = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(ours @ theirs) / length if length else 0.0
