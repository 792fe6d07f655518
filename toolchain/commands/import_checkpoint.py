"""`lctr import`."""

from __future__ import annotations

from pathlib import Path

import click

from toolchain.commands import terminal
from toolchain.commands.answers import print_json
from toolchain.commands.options import PATH, json_option, output_option, require_suffix


@click.command("import", short_help="Take over a .pth file of LCTR's authors, DeiT or TS-CAM.")
@click.argument("checkpoint", type=PATH)
@output_option("Checkpoint to write, .safetensors.")
@click.option("--class-names", type=PATH, metavar="FILE", help="One name a line. Default: class 0, class 1, ...")
@click.option("--tau", type=float, help="Box threshold. Default: the published one, for 200 and 1000 classes.")
@json_option
def import_(checkpoint: Path, output: Path, class_names: Path | None, tau: float | None, as_json: bool) -> None:
    """Take over CHECKPOINT, a .pth file of LCTR's authors, of DeiT or of TS-CAM.

    LCTR's becomes a localizer. DeiT's and TS-CAM's have none: they become a backbone, which `lctr train --init` starts
    from. Nothing in the file is run: one that asks for it is refused.
    """
    require_suffix(output, ".safetensors")
    from toolchain.importing import imported

    with terminal.steps() as step:
        step("import")
        artifact, reused = imported(checkpoint, output, class_names=class_names, tau=tau)
    facts = artifact.metadata
    if as_json:
        print_json({"path": str(output), "kind": artifact.kind, "reused": reused, **facts})
        return
    of_classes = f" of {facts['classes']:,} classes" if facts["classes"] else ""
    click.echo(f"{facts['found']}{of_classes} in the sizes of {facts['preset']}.")
    converted = f", converted to float32 from {', '.join(facts['converted'])}" if facts["converted"] else ""
    click.echo(f"Taken: {facts['tensors']} tensors, {facts['parameters']:,} parameters{converted}.")
    if facts["left_out"]:
        click.echo(f"Left out: {', '.join(facts['left_out'])}.")
    if facts["missing"]:
        click.echo(f"Missing: {', '.join(facts['missing'])}. This is a backbone without a localizer; train one on it:")
        click.echo(f"  lctr train --preset {facts['preset']} --init {output} ...")
    else:
        click.echo(f"tau {facts['tau']:g}, protocol {facts['protocol']}.")
    click.echo(f"Unchanged: reused.\n{output}" if reused else output)
