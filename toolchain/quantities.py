"""Quantities with their unit, as options give them: `5ms`, `40mJ`, `3s`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from toolchain.errors import UsageError

NUMBER_AND_UNIT = re.compile(r"(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+) ?([A-Za-z]*)")


@dataclass(frozen=True)
class Kind:
    """A kind of quantity.

    Attributes:
        name: as a message calls it.
        units: name -> factor to the unit that everything is computed in, whose factor is 1.
        example: one with a unit.
        bare: the unit of a plain number, where one is generally known; None: a unit is required.
    """

    name: str
    units: Mapping[str, float]
    example: str
    bare: str | None = None


LATENCY = Kind("latency", {"us": 1e-3, "ms": 1.0, "s": 1e3}, "5ms")
WARM_UP = Kind("time", LATENCY.units, "200ms", bare="ms")
DURATION = Kind("time", {"ms": 1e-3, "s": 1.0, "min": 60.0}, "3s", bare="s")
ENERGY = Kind("energy", {"mJ": 1e-3, "J": 1.0}, "40mJ")


def quantity(option: str, text: str, kind: Kind) -> float:
    """The value of an option, in the kind's own unit: milliseconds, of a duration seconds, joules.

    Raises:
        UsageError: no number, a negative one, an unknown unit, or none where one is required.
    """
    found = NUMBER_AND_UNIT.fullmatch(text.strip())
    unit = (found.group(2) or kind.bare or "") if found else ""
    if not found or unit not in kind.units:
        raise UsageError(f"{option} {text} is no {kind.name}: write it as {kind.example} ({', '.join(kind.units)}).")
    return float(found.group(1)) * kind.units[unit]
