"""`lctr synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolchain.commands import terminal
from toolchain.commands.answers import print_json, say_aside, say_made, selected
from toolchain.commands.options import PATH, guide_options, input_stated, json_option, output_option, seed_option


@click.command(short_help="Make calibration images from a network alone.")
@click.argument("model", type=PATH, required=False)
@click.option("--method", default="fdda", show_default=True, metavar="NAME", help="fdda, psaq or noise.")
@click.option(
    "--preset", default="fast", show_default=True, metavar="NAME", help="fast: to calibrate; paper: as published."
)
@click.option("--statistics", "bundle", type=PATH, help="Default: those beside the model or guide file.")
@click.option("--no-statistics", is_flag=True, help="Do without, where nobody has them; the images are worse.")
@click.option("--count", default=256, show_default=True, help="Images.")
@click.option("--steps", type=int, help="Of the optimizer. Default: the preset's.")
@seed_option
@output_option("Folder of PNG files; preview and loss curves stand beside it.", "synthetic")
@guide_options
@json_option
def synthesize(
    model: Path | None,
    bundle: Path | None,
    no_statistics: bool,
    output: Path,
    guide: str | None,
    num_classes: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    image_size: int | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Synthesize calibration images from a network and its statistics alone.

    --method fdda trains a generator whose images show the statistics of MODEL's tokens; with --guide, those of a
    network with BatchNorm, which fast compares in units of their deviation, and paper as they are. A guide stands for
    MODEL, or for a network that is no localizer: then give --num-classes, --image-size, --mean and --std. Without
    statistics a guide's own running statistics remain.

    --method psaq changes pixels until MODEL's attention tells patches apart, and needs no statistics (PSAQ-ViT).
    --method noise is what both must beat. Parts of a method that could not be had are said.
    """
    from calib.image_set import losses_plot_of, preview_of
    from toolchain.requests import Request, bundle_for
    from toolchain.stages import synthetic
    from toolchain.teachers import teacher_named

    request = Request(**wanted)
    known = teacher_named(model, guide, input_stated(mean, std, image_size), num_classes)
    used = bundle_for(request, known, bundle, no_statistics)
    with terminal.steps() as step:
        made = synthetic(known, used, output, request, progress=step("images"))
    facts = made.artifact.metadata
    if as_json:
        kept = selected(facts, "agreement", "deviation_ratio", "final_losses", "missing")
        print_json({"path": str(output), "reused": made.reused, **kept})
        return
    for sentence in facts["missing"]:
        say_aside(f"Warning: {sentence}")
    if facts["agreement"] is not None:
        click.echo(f"The model agrees with {facts['agreement']:.0%} of the labels.")
    say_made(made)
    for path in (preview_of(output), losses_plot_of(output)):
        if path.exists():
            click.echo(path)
