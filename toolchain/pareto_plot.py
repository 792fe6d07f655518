"""Latency against accuracy as a picture, and which engines no other one beats in both; nothing is measured here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.artifacts import writing
from toolchain.errors import UsageError

EQUAL_DB = 6.0
"""What equals the reference has no SNR: it is drawn so far above the best that has one."""
NO_ERROR_DB = 60.0
"""The best, where no file has one."""


@dataclass(frozen=True)
class Point:
    """One engine: median milliseconds, and accuracy, of which more is better."""

    name: str
    milliseconds: float
    accuracy: float


def check_plot(output: Path) -> None:
    """To be asked before a long measurement, which would be lost otherwise.

    Raises:
        UsageError: the name does not end in `.png`.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if output.suffix != ".png":
        raise UsageError(f"--plot {output} does not end in .png: name a .png file.")
    # Late: a deployment machine has no matplotlib, and it takes a second.
    import matplotlib  # noqa: F401


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The Pareto front, the fastest first: no other point is as fast and more accurate, or as accurate and faster."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.milliseconds, -p.accuracy)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return tuple(kept)


def points_of(record: Mapping[str, Any], size: str) -> tuple[str, tuple[Point, ...]]:
    """What stands on the accuracy axis, and the engines at one batch size.

    Top-1 Loc where it was measured, else the SNR of the outputs against the reference's, the worst of them. Engines
    whose outputs are broken are left out, for they compute nothing.

    Args:
        record: `toolchain.benchmarking.Compared.as_dict`.
        size: batch size, as the record writes it.
    """
    row = {name: found for name, found in record["latency"]["batches"][size].items() if not found["problems"]}
    if record["accuracy"]:
        title, accuracy = "Top-1 Loc, %", {n: a["evaluation"]["top1_loc"] for n, a in record["accuracy"].items()}
    else:
        title, accuracy = "outputs against the reference's, SNR in dB", _snr(row)
    medians = {name: found["timings"]["median"] for name, found in row.items()}
    return title, tuple(Point(name, medians[name], accuracy[name]) for name in row if name in accuracy)


def draw(record: Mapping[str, Any], output: Path) -> None:
    """One panel for each batch size: an engine is a point with its name, the front is drawn through.

    Args:
        record: `toolchain.benchmarking.Compared.as_dict`, or the file of it.
        output: PNG file.

    Raises:
        UsageError, ModuleNotFoundError: as `check_plot`.
        ArtifactError: the place cannot be written to.
    """
    check_plot(output)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = list(record["latency"]["batches"])
    figure = Figure(figsize=(5.5 * len(sizes), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        title, points = points_of(record, size)
        best = front(points)
        axes.step([p.milliseconds for p in best], [p.accuracy for p in best], where="post", linewidth=1, label="front")
        for point in points:
            axes.plot(point.milliseconds, point.accuracy, "o" if point in best else "x", color="black")
            place = (point.milliseconds, point.accuracy)
            axes.annotate(point.name, place, xytext=(5, 5), textcoords="offset points", fontsize="small")
        axes.set(xlabel=f"median latency at batch {size}, ms", ylabel=title)
        axes.margins(0.2)
        axes.grid(linewidth=0.4)
    with writing(output) as temporary:
        # Without the version of matplotlib, so that the bytes are those of the picture alone.
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def _snr(row: Mapping[str, Any]) -> dict[str, float]:
    """Name -> decibels of the worst output that differs; above all others where none does."""
    worst = {
        name: min((each["snr_db"] for each in found["agreement"].values() if each["snr_db"] is not None), default=None)
        for name, found in row.items()
    }
    top = max((db for db in worst.values() if db is not None), default=NO_ERROR_DB) + EQUAL_DB
    return {name: top if db is None else db for name, db in worst.items()}
