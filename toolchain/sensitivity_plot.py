"""The ranking of a search as a picture; drawn from its record, nothing is measured here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolchain.artifacts import writing

SHOWN = 40
"""Units drawn: below the costliest forty nobody looks."""
LEAST_NOISE = 1e-6
"""60 dB, the end of the axis: what is quieter is drawn there."""


def draw(record: Mapping[str, Any], output: Path) -> None:
    """One line a unit, the costliest on top: what it costs alone, and what the rest costs without it.

    Args:
        record: as `toolchain.mixed` writes it.
        output: PNG file.

    Raises:
        ArtifactError: the place cannot be written to.
    """
    # Late, and no pyplot: it takes a second, and would look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ranked = record["ranking"][:SHOWN]
    panels = [("noise", "output error, noise / signal power")]
    if record["float"]:
        panels.insert(0, ("lost", "points lost of GT-Known or Top-1 Loc"))
    figure = Figure(figsize=(5 * len(panels) + 3, 1.6 + 0.24 * len(ranked)), layout="constrained")
    FigureCanvasAgg(figure)
    places = range(len(ranked))
    for axes, (key, label) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for way, marker, words in (("only_quantized", "o", "only it in INT8"), ("only_float", "x", "only it in float")):
            axes.plot([_value(unit[way], key) for unit in ranked], places, marker, markersize=5, label=words)
        axes.set(xlabel=label, yticks=places, ylim=(len(ranked) - 0.5, -0.5))
        axes.set_yticklabels([unit["unit"] for unit in ranked], fontsize="small")
        axes.grid(axis="x", linewidth=0.4)
        if key == "noise":
            axes.set_xscale("log")
        axes.legend(fontsize="small")
    rest = f"; the first {SHOWN} of {len(record['ranking'])}" if len(record["ranking"]) > SHOWN else ""
    figure.suptitle(f"What each {record['by']} costs in INT8, on {record['images']}{rest}", fontsize="medium")
    with writing(output) as temporary:
        # Without the version of matplotlib, so that the bytes are those of the picture alone.
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def _value(quality: Mapping[str, float], key: str) -> float:
    if key == "lost":
        return quality["lost"]
    return max(quality["logits_noise"], quality["map_noise"], LEAST_NOISE)
