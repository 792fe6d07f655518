"""Which parts of a graph cannot take INT8: each alone quantized, each alone left float, then the smallest set left.

A unit is a node or a block. What a unit costs is the mean of what it adds to a graph in which nothing else is quantized
and of what leaving it float takes from one in which everything else is: the first and the last term of its Shapley
value. Units are ranked by the points of the task metric that they cost; what is one image or less is no difference, and
there the power of the output error decides, which is measured finely and nearly adds up.

The set is grown along the ranking, in steps that double and are then halved, until the bound holds; then every member
is tried without. Whatever a set is said to reach was measured with that set. It is irreducible: no member can be
quantized, the rest staying float. That no quite different set is smaller would take 2^n measurements to know.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from toolchain.errors import UsageError
from toolchain.probe import Quality

AUTO = "auto"
"""The value of `--precision` with which measurements choose."""
MAX_DROP = 0.5
"""Points that may be lost, unless somebody says otherwise."""
ROUNDING = 1e-9
"""A bound that is met to the digit holds, however the percentages round."""

Left = frozenset[str]
"""Units left float."""


@dataclass(frozen=True)
class Bound:
    """What may be lost: points of the task metric or, without boxes, output error.

    Attributes:
        max_drop: points of GT-Known Loc or Top-1 Loc, whichever lost more.
        min_snr: decibels that the SNR of logits and of map must reach.

    Raises:
        UsageError: not exactly one of them, or a negative drop.
    """

    max_drop: float | None = None
    min_snr: float | None = None

    def __post_init__(self) -> None:
        if (self.max_drop is None) == (self.min_snr is None):
            raise UsageError(
                "Output error is bounded where there are no boxes, points where there are: give one bound."
            )
        if self.max_drop is not None:
            checked_drop(self.max_drop)

    def holds(self, quality: Quality) -> bool:
        """Whether a measured graph is within the bound; a figure that is missing is not."""
        if self.max_drop is not None:
            return quality.lost is not None and within(quality.lost, self.max_drop)
        return self.min_snr is not None and quality.snr_db >= self.min_snr

    @property
    def text(self) -> str:
        """As the user gave it."""
        return f"--max-drop {self.max_drop:g}" if self.max_drop is not None else f"--min-snr {self.min_snr:g}"


@dataclass(frozen=True)
class Ranked:
    """One unit.

    Attributes:
        unit: its name.
        only_quantized: everything else float.
        only_float: everything else quantized.
        points: of the task metric that it costs; None without boxes.
        noise: power of the output error that it costs, relative to the signal's.
    """

    unit: str
    only_quantized: Quality
    only_float: Quality
    points: float | None
    noise: float


class Measure(Protocol):
    """Builds the graph in which `left` stays float and everything else is quantized, and measures it."""

    def __call__(self, left: Left) -> Quality:
        """Raises `Spent` where the evaluations are used up; a set that was measured before costs none."""


class Spent(Exception):
    """No evaluation is left."""


@dataclass(frozen=True)
class Found:
    """The set to leave float.

    Attributes:
        left: units, in the ranking's order; all of them: nothing quantized meets the bound.
        irreducible: every member was tried without; False: the evaluations ran out before.
    """

    left: tuple[str, ...]
    irreducible: bool


def checked_drop(points: float) -> float:
    """The drop that a user allows.

    Raises:
        UsageError: it is negative, or not a number.
    """
    if not points >= 0:
        raise UsageError(f"--max-drop {points:g} asks for a gain in accuracy: give 0 or more points.")
    return points


def within(lost: float, max_drop: float) -> bool:
    """Whether a loss is within the drop allowed, both in points."""
    return lost <= max_drop + ROUNDING


def needed(units: int) -> int:
    """Evaluations that a ranking and the growth of a set take at most."""
    return 1 + 2 * units + 2 * units.bit_length()


def most(units: int) -> int:
    """Evaluations of everything at most, the trials to leave fewer units float included."""
    return needed(units) + units


def ranking(units: Sequence[str], measure: Measure, one_image: float) -> tuple[Ranked, ...]:
    """Measure every unit both ways; the one that costs most comes first.

    Args:
        units: all of them.
        measure: see there.
        one_image: points that one image makes.
    """
    everything, nothing = frozenset(units), frozenset[str]()
    whole = measure(nothing)
    ranked = []
    for unit in units:
        alone, without = measure(everything - {unit}), measure(frozenset({unit}))
        noise = (alone.noise + whole.noise - without.noise) / 2
        ranked.append(Ranked(unit, alone, without, _points(alone, whole, without), noise))

    def cost(found: Ranked) -> tuple[float, float]:
        points = found.points if found.points is not None and found.points > one_image + ROUNDING else 0.0
        return points, found.noise

    return tuple(sorted(ranked, key=cost, reverse=True))


def smallest_set(order: Sequence[str], holds: Callable[[Left], bool]) -> Found:
    """Grow a set along `order` until the bound holds, then try every member without.

    Args:
        order: all units, the one that costs most first.
        holds: measures a set left float; True for all of them without a measurement; raises `Spent` in the trials.
    """
    left = list(order[: _grown(order, holds)])
    try:
        for unit in reversed(tuple(left)):
            fewer = [other for other in left if other != unit]
            if holds(frozenset(fewer)):
                left = fewer
    except Spent:
        return Found(tuple(left), irreducible=False)
    return Found(tuple(left), irreducible=True)


def _grown(order: Sequence[str], holds: Callable[[Left], bool]) -> int:
    """How many units from the first on are enough; the number before was measured not to be."""
    if holds(frozenset()):
        return 0
    low, high = 0, 1
    while high < len(order) and not holds(frozenset(order[:high])):
        low, high = high, 2 * high
    high = min(high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        if holds(frozenset(order[:middle])):
            high = middle
        else:
            low = middle
    return high


def _points(alone: Quality, whole: Quality, without: Quality) -> float | None:
    if alone.lost is None or whole.lost is None or without.lost is None:
        return None
    return (alone.lost + whole.lost - without.lost) / 2
