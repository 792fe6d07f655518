"""One thing that was looked at."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "broken", "note"]


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do about it.

    Attributes:
        name: what was looked for.
        found: what is there, in words.
        state: `ok`; `missing`, which some command needs; `broken`, there and unusable; `note`, worth knowing.
        remedy: what to do, as a command where there is one; empty where there is nothing to do.
    """

    name: str
    found: str
    state: State = "ok"
    remedy: str = ""
