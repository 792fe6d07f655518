"""How a long computation tells the one who called it where it stands."""

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Called after each step of a long computation."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report `done` of `total` steps; `note` is a few words such as a loss or an ETA."""


def silent(done: int, total: int, note: str = "") -> None:
    """The progress of a caller who does not want to know."""


Step = Callable[[str], Progress]
"""Name of a step of a longer run -> where its progress goes."""


def unwatched(name: str) -> Progress:
    """The steps of a caller who does not want to know."""
    return silent
