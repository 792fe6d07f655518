"""`lctr statistics`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolchain.commands import terminal
from toolchain.commands.answers import print_json, say_made, selected
from toolchain.commands.options import (
    PATH,
    data_option,
    guide_options,
    input_stated,
    json_option,
    output_option,
    require_suffix,
)
from toolchain.errors import UsageError


@click.command(short_help="Take class centers and global moments, never an image.")
@click.argument("model", type=PATH, required=False)
@data_option(None)
@output_option("Default: beside the model or guide, NAME.statistics.safetensors.", "")
@click.option("--images", type=int, help="Training images. Default: all.")
@click.option("--min-images", default=8, show_default=True, help="Fewest images that a class center is made of.")
@guide_options
@json_option
def statistics(
    model: Path | None,
    data: str,
    output: Path,
    images: int | None,
    min_images: int,
    guide: str | None,
    num_classes: int | None,
    as_json: bool,
    **stated: Any,
) -> None:
    """Take the statistics of MODEL, or of a guide: class centers and global moments, never an image.

    Run it where the training images are; its result is all that has to leave that place. Of MODEL they are taken of
    the tokens, in layers chosen by how well they separate the classes; of a guide, at the inputs of its BatchNorms.

    A class with fewer than --min-images gets no center: its images enter the global moments alone, and those only if
    there are so many of such classes together. docs/privacy.md says what the result reveals.
    """
    from toolchain.stages import statistics
    from toolchain.teachers import teacher_named

    known = teacher_named(model, guide, input_stated(**stated), num_classes)
    target = known.statistics if output == Path() else output
    if target is None:
        raise UsageError(f"--guide {guide} is no file that statistics could stand beside: name one with --output.")
    require_suffix(target, ".safetensors")
    with terminal.steps() as step:
        made = statistics(known, data, target, images=images, min_images=min_images, progress=step("statistics"))
    facts = made.artifact.metadata
    if as_json:
        kept = selected(facts, "model_sha256", "population", "center_layers", "separation", "without_center")
        print_json({"path": str(target), "reused": made.reused, **kept})
        return
    classes, layers = len(facts["population"]["classes"]), len(facts["center_layers"])
    click.echo(f"{classes} class centers in {layers} layers.")
    fewer, without = f"Fewer than {facts['population']['min_images']} images", facts["without_center"]
    for fate, words in (
        ("pooled", f"{fewer}, in the global statistics only"),
        ("left_out", f"{fewer}, even together, and left out"),
        ("absent", "No image"),
    ):
        if without[fate]:
            click.echo(f"{words}: {', '.join(without[fate])}.")
    say_made(made)
