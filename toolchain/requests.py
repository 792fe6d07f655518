"""Which synthetic images somebody wants: a method by its name, a preset by its, and what was changed of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calib import fdda, patch_similarity
from calib.fdda import Fdda
from calib.noise import Noise
from calib.patch_similarity import PatchSimilarity
from calib.statistics import Statistics
from calib.synthesis import Method
from toolchain.errors import UsageError, chosen
from toolchain.teachers import KnownTeacher

FDDA, PSAQ, NOISE = "fdda", "psaq", "noise"


@dataclass(frozen=True)
class Request:
    """Synthetic images to be made.

    Attributes:
        count: images.
        method: `fdda`, `psaq` or `noise`.
        preset: `fast`, for calibration, or `paper`, the published constants.
        steps: of the optimizer; None: the preset's.
        seed: of every random number.
    """

    count: int
    method: str = FDDA
    preset: str = "fast"
    steps: int | None = None
    seed: int = 0


def bundle_for(request: Request, known: KnownTeacher, named: Path | None, without: bool) -> Path | None:
    """The statistics to use: those named, or those beside the network; None: none.

    Raises:
        UsageError: statistics are named and refused at once.
    """
    if named and without:
        raise UsageError("--statistics and --no-statistics contradict each other: leave one out.")
    beside = None if without or request.method != FDDA else known.statistics
    return named or beside


def method_of(request: Request, known: KnownTeacher, statistics: Statistics | None) -> Method:
    """The method that was asked for, for one network.

    Raises:
        UsageError: no such method or preset, or the network or the statistics have no part in it.
    """
    build = chosen("method", request.method, METHODS)
    if statistics and request.method != FDDA:
        raise UsageError(f"--method {request.method} uses no statistics: leave --statistics out.")
    return build(request, known, statistics)


def _fdda(request: Request, known: KnownTeacher, statistics: Statistics | None) -> Method:
    config = _adjusted(request, fdda.PRESETS)
    return Fdda(config, known.aligned(statistics, config.relative))


def _psaq(request: Request, known: KnownTeacher, statistics: Statistics | None) -> Method:
    if known.attention is None:
        raise UsageError(f"--method psaq looks at the attention of a localizer, and {known.name} has none: use fdda.")
    return PatchSimilarity(_adjusted(request, patch_similarity.PRESETS), known.attention)


def _noise(request: Request, known: KnownTeacher, statistics: Statistics | None) -> Method:
    if request.steps is not None:
        raise UsageError("--method noise trains nothing: leave --steps out.")
    return Noise()


METHODS: dict[str, Callable[[Request, KnownTeacher, Statistics | None], Method]] = {
    FDDA: _fdda,
    PSAQ: _psaq,
    NOISE: _noise,
}


def _adjusted(request: Request, presets: Mapping[str, Any]) -> Any:
    config = chosen("preset", request.preset, presets)
    return config if request.steps is None else replace(config, steps=request.steps)
