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


def within(progress: Progress, before: int, steps: int) -> Progress:
    """Where a part of a computation reports: one of `steps` steps in all, `before` of which come first."""

    def told(done: int, total: int, note: str = "") -> None:
        progress(before + done, steps, note)

    return told
