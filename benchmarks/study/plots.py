"""The study's plots, from its record; and the picture of images side by side, from the images that were used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter
from numpy.typing import NDArray

from study.arms import REAL
from study.summary import arms_of, figure, of_arm, range_ratios
from toolchain.artifacts import writing

DPI = 110


def localizer_plot(localizer: Mapping[str, Any], path: Path) -> None:
    """The logits' signal-to-noise ratio by arm and width, mean and deviation; and the ranges, a point for a tensor."""
    runs = localizer["runs"]
    arms, widths = arms_of(runs), list(runs[0]["widths"])
    canvas = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(canvas)
    bars, points = canvas.subplots(1, 2)
    places, thickness = np.arange(len(arms)), 0.8 / len(widths)
    for index, width in enumerate(widths):
        found = [figure(runs, arm, width, "logits_snr_db") for arm in arms]
        shift = (index - (len(widths) - 1) / 2) * thickness
        errors = [each.deviation or 0.0 for each in found]
        bars.bar(places + shift, [each.mean for each in found], thickness, yerr=errors, capsize=2, label=width)
    bars.set(ylabel="logits against FP32, dB", title=localizer["name"])
    bars.set_xticks(places, arms, rotation=25, ha="right")
    bars.margins(y=0.2)
    bars.legend(loc="upper left", ncols=len(widths))
    others = [arm for arm in arms if arm != REAL]
    for place, arm in enumerate(others):
        ratios = list(range_ratios(runs, arm).values())
        points.plot([place] * len(ratios), ratios, ".", alpha=0.5)
    points.axhline(1, color="grey", linewidth=1)
    points.set(yscale="log", ylabel="range over that of real images", title="one point for each quantized tensor")
    points.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    points.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
    points.set_xticks(range(len(others)), others, rotation=25, ha="right")
    _saved(canvas, path)


def tuning_plot(tuning: Mapping[str, Any], path: Path) -> None:
    """Top-1 of every run."""
    runs = tuning["runs"]
    canvas = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot(ylabel="Top-1", title=f"{tuning['name']} at {tuning['bits']} bits")
    arms = arms_of(runs)
    for place, arm in enumerate(arms):
        values = [run["top1"] for run in of_arm(runs, arm)]
        axes.plot([place] * len(values), values, "o", alpha=0.5, color="tab:blue")
        axes.plot([place - 0.2, place + 0.2], [np.mean(values)] * 2, color="black")
    axes.axhline(tuning["fp32"]["top1"], color="grey", linewidth=1, linestyle="--")
    axes.annotate("FP32", (len(arms) - 1, tuning["fp32"]["top1"]), ha="right", va="bottom")
    axes.set_xticks(range(len(arms)), arms, rotation=20, ha="right")
    _saved(canvas, path)


def picture(images: Mapping[str, NDArray[np.uint8]], path: Path) -> None:
    """A row of images (count, S, S, 3) for each arm, its name in front; a JPEG, for PNG cannot compress noise."""
    rows = len(images)
    canvas = Figure(figsize=(9, 1.2 * rows), layout="constrained")
    FigureCanvasAgg(canvas)
    for place, (arm, some) in enumerate(images.items(), 1):
        axes = canvas.add_subplot(rows, 1, place)
        axes.imshow(np.concatenate(list(some), axis=1))
        axes.set_ylabel(arm, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
    _saved(canvas, path)


def _saved(canvas: Figure, path: Path) -> None:
    with writing(path) as temporary:
        canvas.savefig(temporary, format=path.suffix.removeprefix("."), dpi=DPI)
