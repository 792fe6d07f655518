"""`lctr export`."""

from __future__ import annotations

from pathlib import Path

import click

from toolchain.commands import terminal
from toolchain.commands.answers import print_json, say_made, selected
from toolchain.commands.options import PATH, json_option, output_option, require_suffix


@click.command(short_help="Export a checkpoint to ONNX, and compare the two.")
@click.argument("model", type=PATH)
@click.option("--precision", default="fp32", show_default=True, metavar="NAME", help="Types inside: fp32 or fp16.")
@click.option(
    "--maps",
    default="top1",
    show_default=True,
    metavar="NAME",
    help="top1: the predicted class's map; all: every class's.",
)
@click.option("--images", type=PATH, metavar="DIR", help="With fp16: look for overflow and subnormals on these images.")
@click.option("--count", type=int, help="Take so many images. Default: all.")
@output_option("ONNX file to write.", "model.onnx")
@json_option
def export(
    model: Path, precision: str, maps: str, images: Path | None, count: int | None, output: Path, as_json: bool
) -> None:
    """Export MODEL to ONNX with a dynamic batch, and compare every output with torch.

    The graph is the one for deployment: no class maps but the predicted class's, and attention that compilers can fuse.
    Input and outputs are float32 whatever the precision. Weights that fp16 cannot hold are reported, and on --images
    what each node computes; an overflow is an error.
    """
    require_suffix(output, ".onnx")
    from toolchain import calibration
    from toolchain.stages import float_onnx

    source = calibration.folder(images, count) if images else None
    with terminal.steps() as step:
        progress = step("export and compare")
        made = float_onnx(model, output, precision=precision, maps=maps, source=source, progress=progress)
    facts = made.artifact.metadata
    parity = facts["parity"]
    if as_json:
        shown = selected(facts, "parity", *{"float16"} & {*facts})
        print_json({"path": str(output), "reused": made.reused, **shown})
        return
    if "float16" in facts:
        half = facts["float16"]
        terminal.float16_table(half)
        seen = f"{len(half['activations'])} nodes on {half['images']} images" if half["images"] else "no image seen"
        click.echo(f"FP16 without overflow: {len(half['weights'])} weights, {seen}.")
    worst = max(parity["deviations"], key=lambda d: float(d["error"]))
    click.echo(
        f"Worst output '{worst['output']}' at batch {worst['batch']}: {worst['error']:.1e} of its largest value "
        f"(tolerance {parity['tolerance']:.0e})."
    )
    say_made(made)
