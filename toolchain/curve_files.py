"""Curves against tau as a file: JSON to compute with, PNG to look at."""

import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

from toolchain.artifacts import code_version, seal, writing
from toolchain.errors import UsageError
from toolchain.scores import Scores

KIND = "curve"
CODE = ("toolchain/curve_files.py", "toolchain/curve.py", "toolchain/protocols.py", "toolchain/boxes.py")
LINES = ("solid", "dashed", "dotted")


def write_curves(scores: Scores, output: Path) -> None:
    """Write the curves of a measurement that asked for them (`Trial.curve`), and the sidecar.

    Args:
        scores: what was measured.
        output: `.json` or `.png`.

    Raises:
        UsageError, ModuleNotFoundError: as `writer_of` does.
        ArtifactError: the place cannot be written to.
    """
    write = writer_of(output)
    with writing(output) as temporary:
        write(scores, temporary)
    parameters = {"data": scores.data, "split": scores.split, "images": scores.images, "protocol": scores.protocol}
    facts = {"taus": scores.taus, "tau_from": scores.tau_from, "tau_source": scores.tau_source}
    inputs = {"localizer": Path(scores.file)}
    seal(output, KIND, parameters=parameters, inputs=inputs, metadata=facts, code=code_version(*CODE))


def writer_of(output: Path) -> Callable[[Scores, Path], None]:
    """What writes curves under such a name; to be asked before a long measurement, which would be lost otherwise.

    Raises:
        UsageError: it ends neither in `.json` nor in `.png`.
        ModuleNotFoundError: a PNG needs matplotlib.
    """
    if output.suffix == ".json":
        return _write_json
    if output.suffix == ".png":
        # Late: a deployment machine has no matplotlib, and it takes a second.
        import matplotlib  # noqa: F401

        return _write_png
    raise UsageError(f"--curve {output} ends neither in .json nor in .png: choose one of them.")


def _write_json(scores: Scores, path: Path) -> None:
    curves = scores.curves
    points = {"tau": curves.taus.tolist(), **{key: rates.tolist() for key, rates in curves.rates.items()}}
    path.write_text(json.dumps({**scores.as_dict(), "curve": points}, indent=1) + "\n")


def _write_png(scores: Scores, path: Path) -> None:
    # No pyplot: it would look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = scores.curves
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="tau, share of the map's maximum", ylabel="percent of images")
    for metric, style in zip(curves.protocol.metrics, cycle(LINES), strict=False):
        tau = scores.taus[metric.key]
        value = curves.at(metric.key, tau)
        label = f"{metric.title}: {value:.2f} at tau {tau:g}"
        (line,) = axes.plot(curves.taus, curves.rates[metric.key], linestyle=style, linewidth=1.2, label=label)
        axes.plot([tau], [value], marker="o", color=line.get_color())
    axes.set(xlim=(0, 1), ylim=(0, 100))
    axes.set_title(
        f"{Path(scores.file).name}, protocol {scores.protocol}, {scores.images:,} images of {scores.data} "
        f"{scores.split}\ntau {scores.tau_source}",
        fontsize="medium",
    )
    axes.legend()
    # Without the version of matplotlib, so that the bytes are those of the picture alone.
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})
