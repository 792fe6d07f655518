"""`lctr inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from toolchain.commands import terminal
from toolchain.commands.answers import print_json
from toolchain.commands.options import PATH, json_option


@click.command(short_help="Show what was compiled, by ONNX node.")
@click.argument("file", type=PATH)
@click.option("--losses", is_flag=True, help="List only what has something to gain.")
@click.option("--nodes", is_flag=True, help="List the kernel of every node, not of products alone; of an engine.")
@json_option
def inspect(file: Path, losses: bool, nodes: bool, as_json: bool) -> None:
    """Show how every linear layer, convolution and attention product of FILE is computed, by ONNX node.

    FILE is an engine, or an ONNX file as ONNX Runtime runs it here.
    """
    from engines.inspect import inspect

    with terminal.steps() as step:
        step("inspect")
        found = inspect(file)
    if as_json:
        print_json(found.as_dict())
        return
    if nodes:
        terminal.nodes_table(found)
    terminal.inspection_table(str(file), found, losses_only=losses)
    for line in terminal.inspection_totals(found):
        click.echo(line)
