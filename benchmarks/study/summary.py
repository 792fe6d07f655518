"""What follows from the record: means and spreads over seeds, ratios of ranges, and whether the bounds hold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from study.arms import ALIGNED, GUIDE, NOISE, REAL, TOKEN, ZERO_SHOT

POINTS, DECIBELS = 0.2, 0.5
"""How far the best FDDA route may be from real images."""
SET_SECONDS, PHOTOGRAPH_SECONDS = 60.0, 900.0
"""For 256 images of the bundled localizer, and for 64 at 224 pixels guided by a network of a MobileNet's size."""

DECIDING = "deciding"
"""In a run: figures on the more images that a small difference is judged by."""

Runs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Spread:
    """Of some runs.

    Attributes:
        mean: over them.
        deviation: sample standard deviation; None: of a single run.
        count: how many.
    """

    mean: float
    deviation: float | None
    count: int

    def text(self, digits: int) -> str:
        """As in a table."""
        return f"{self.mean:.{digits}f}" + (f" ± {self.deviation:.{digits}f}" if self.deviation is not None else "")


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation."""
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def of_arm(runs: Runs, arm: str) -> Runs:
    """The runs of an arm, seed by seed."""
    return sorted((run for run in runs if run["arm"] == arm), key=lambda run: int(run["seed"]))


def figure(runs: Runs, arm: str, width: str, metric: str) -> Spread:
    """Of an arm at a width."""
    return spread([run["widths"][width][metric] for run in of_arm(runs, arm)])


def arms_of(runs: Runs) -> list[str]:
    """In the order in which they were measured."""
    return list(dict.fromkeys(run["arm"] for run in runs))


def range_ratios(runs: Runs, arm: str) -> dict[str, float]:
    """Tensor -> range in this arm over the range on real images, mean over seeds; tensors of zeros are left out."""
    pairs = list(zip(of_arm(runs, arm), of_arm(runs, REAL), strict=True))
    names = [name for name in pairs[0][0]["amax"] if all(real["amax"][name] > 0 for _, real in pairs)]
    return {name: float(np.mean([run["amax"][name] / real["amax"][name] for run, real in pairs])) for name in names}


@dataclass(frozen=True)
class Verdict:
    """Whether a bound holds.

    Attributes:
        of: what it is a bound of.
        found: in words and figures.
        holds: whether.
    """

    of: str
    found: str
    holds: bool


def verdicts(record: Mapping[str, Any]) -> list[Verdict]:
    """All bounds that the record has figures for."""
    found = [verdict for localizer in record.get("localizers", ()) for verdict in _against_real(localizer)]
    if "fine-tuning" in record:
        found.append(_against_zero_shot(record["fine-tuning"]))
    return found + _speed(record.get("speed", ()))


def with_summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with what follows from it."""
    return {**record, "verdicts": [asdict(verdict) for verdict in verdicts(record)]}


def deciding(runs: Runs, arm: str, metric: str) -> Spread:
    """Of an arm at W8A8, on the images that decide: all that it was judged on."""
    return spread([_decisive(run)[metric] for run in of_arm(runs, arm)])


def _decisive(run: Mapping[str, Any]) -> Mapping[str, float]:
    found: Mapping[str, float] = run.get(DECIDING, run["widths"]["W8A8"])
    return found


def _against_real(localizer: Mapping[str, Any]) -> list[Verdict]:
    """W8A8: the better FDDA route by the logits' SNR against real images, of those judged on as many; and noise."""
    runs = localizer["runs"]
    widely = any(DECIDING in run for run in runs)
    judged = {run["arm"] for run in runs if (DECIDING in run) == widely}
    routes = [arm for arm in (GUIDE, TOKEN) if arm in judged]

    def lost(arm: str, metric: str) -> float:
        return deciding(runs, REAL, metric).mean - deciding(runs, arm, metric).mean

    best = min(routes, key=lambda arm: lost(arm, "logits_snr_db"))
    points = {name: lost(best, metric) for name, metric in (("Top-1", "top1"), ("GT-Known Loc", "gt_known_loc"))}
    decibels = {name: lost(best, metric) for name, metric in (("logits", "logits_snr_db"), ("map", "map_snr_db"))}
    holds = max(points.values()) <= POINTS and max(decibels.values()) <= DECIBELS
    told = [f"{value:+.2f} points of {name}" for name, value in points.items()]
    told += [f"{value:+.2f} dB of {name}" for name, value in decibels.items()]
    noise = figure(runs, REAL, "W8A8", "logits_snr_db").mean - figure(runs, NOISE, "W8A8", "logits_snr_db").mean
    text = f"{best} loses {', '.join(told)} against real images; noise {noise:+.2f} dB of logits"
    bound = f"W8A8 of {localizer['name']}: the best FDDA route loses at most {POINTS} points and {DECIBELS} dB"
    return [Verdict(bound, text, holds)]


def _against_zero_shot(tuning: Mapping[str, Any]) -> Verdict:
    ours, rival = (spread([run["top1"] for run in of_arm(tuning["runs"], arm)]) for arm in (ALIGNED, ZERO_SHOT))
    wider = max(ours.deviation or 0.0, rival.deviation or 0.0)
    gained = ours.mean - rival.mean
    told = f"FDDA {ours.text(2)}, zero-shot {rival.text(2)}: {gained:+.2f} points, spread {wider:.2f}"
    return Verdict("fine-tuned: FDDA beats zero-shot L_BNS by more than the spread", told, gained > wider)


def _speed(rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    found = []
    for row in rows:
        told = f"{row['images']} images in {row['seconds']:.0f} s"
        if row["method"] == TOKEN and row["pixels"] == 112 and row["images"] >= 256:
            of = f"256 images for the bundled localizer in at most {SET_SECONDS:.0f} s"
            found.append(Verdict(of, told, row["seconds"] <= SET_SECONDS))
        if row["network"].startswith("EfficientNet") and row["images"] >= 64:
            of = f"64 images at 224 pixels, a guide of a MobileNet's size, in at most {PHOTOGRAPH_SECONDS:.0f} s"
            found.append(Verdict(of, told, row["seconds"] <= PHOTOGRAPH_SECONDS))
    return found
