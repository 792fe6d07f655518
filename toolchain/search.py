"""What a user may ask of `lctr quantize --precision auto`, and what makes no sense together."""

from dataclasses import dataclass

from toolchain.errors import UsageError, chosen
from toolchain.probe import IMAGES
from toolchain.sensitivity import AUTO, MAX_DROP, Bound
from toolchain.units import NODE, UNITS

INT8 = "int8"


@dataclass(frozen=True)
class Search:
    """What `--precision auto` is asked for.

    Attributes:
        bound: what may be lost.
        data: whose `val` images the bound is held on, as for `--data`; None: the calibration images.
        by: `node` or `block`.
        images: to judge on, at most.
        max_evaluations: kept ones count; None: what the search takes.

    Raises:
        UsageError: a number below 1, or no such unit.
    """

    bound: Bound
    data: str | None = None
    by: str = NODE
    images: int = IMAGES
    max_evaluations: int | None = None

    def __post_init__(self) -> None:
        chosen("--by", self.by, UNITS)
        if self.images < 1:
            raise UsageError(f"--eval-images {self.images} is too few: give at least 1.")


def search_from_options(
    precision: str,
    *,
    data: str | None,
    max_drop: float | None,
    min_snr: float | None,
    by: str | None,
    eval_images: int | None,
    max_evaluations: int | None,
) -> Search | None:
    """The search that the options ask for; None: `--precision int8`, everything is quantized.

    Raises:
        UsageError: another precision, an option that has no meaning with it, or no bound.
    """
    chosen("--precision", precision, {INT8: None, AUTO: None})
    given = {"--data": data, "--max-drop": max_drop, "--min-snr": min_snr, "--by": by}
    given |= {"--eval-images": eval_images, "--max-evaluations": max_evaluations}
    named = [name for name, value in given.items() if value is not None]
    if precision == INT8:
        if named:
            raise UsageError(f"{named[0]} is for --precision {AUTO}, which was not asked for: add it, or leave it out.")
        return None
    if data is None and min_snr is None:
        missing = "--max-drop is in points of localization, which" if max_drop is not None else f"--precision {AUTO}"
        raise UsageError(
            f"{missing} needs images with boxes: name a data set with --data, or bound the output error on the "
            "calibration images with --min-snr."
        )
    if data is not None and min_snr is not None:
        raise UsageError(f"--data and --min-snr {min_snr:g} contradict each other: leave one out.")
    bound = Bound(max_drop=MAX_DROP if max_drop is None else max_drop) if data else Bound(max_drop, min_snr)
    return Search(bound, data, by or NODE, IMAGES if eval_images is None else eval_images, max_evaluations)
