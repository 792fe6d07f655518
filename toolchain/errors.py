"""Every error a user can meet, each one sentence: cause, offending name and value, what to do.

LctrError                    exit 1
├── ArtifactError            a file of ours is missing, truncated, changed or of another kind
├── DataError                a data set or an image cannot be used; lists every problem found
├── ModelError               a checkpoint or ONNX model is not what the command needs
├── BackendError             a runtime refused to build or run
│   └── BackendUnavailable   the runtime, or the hardware it needs, is not on this machine
├── ParityError              an exported model does not compute what its source computes
├── TrainingError            training diverged or died
├── UsageError               exit 2: an argument or option value that cannot be meant
└── GateFailed               exit 3: a bound the user set did not hold
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class LctrError(Exception):
    """Base of all errors that are reported as one sentence instead of a traceback."""

    exit_code = 1


class ArtifactError(LctrError):
    """An artifact or its sidecar is missing, truncated, changed, or of another kind."""


class DataError(LctrError):
    """A data set or image that cannot be used.

    Args:
        summary: the sentence.
        problems: every single problem found, one line each.
    """

    def __init__(self, summary: str, problems: Sequence[str] = ()) -> None:
        super().__init__("\n".join([summary, *(f"  {p}" for p in problems)]))
        self.problems = tuple(problems)


class ModelError(LctrError):
    """A checkpoint or ONNX model that the command cannot use."""


class BackendError(LctrError):
    """A runtime refused to build or to run a model."""


class BackendUnavailable(BackendError):
    """The runtime, or the hardware that it needs, is not on this machine."""


class ParityError(LctrError):
    """An exported model does not compute what its source computes."""


class TrainingError(LctrError):
    """Training diverged, or a part of the model died."""


class UsageError(LctrError):
    """An argument or option value that cannot be meant."""

    exit_code = 2


class GateFailed(LctrError):
    """A bound that the user set did not hold."""

    exit_code = 3


def chosen(what: str, name: str, among: Mapping[str, T]) -> T:
    """What the user called `name`, from the table of everything of its kind.

    Args:
        what: the kind, as the message calls it.
        name: what the user gave.
        among: by name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in among:
        raise UsageError(f"unknown {what} '{name}': choose one of {', '.join(among)}.")
    return among[name]


def first_line(error: BaseException) -> str:
    """What a foreign error says first, fit to stand inside a sentence; its type's name where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".:")
