"""`lctr evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolchain.commands import terminal
from toolchain.commands.answers import print_json
from toolchain.commands.options import PATH, data_option, json_option

if TYPE_CHECKING:
    from toolchain.scores import Scores


@click.command(short_help="Measure how well a file classifies and localizes.")
@click.argument("file")
@data_option()
@click.option("--split", default="test", show_default=True, help="train, val or test.")
@click.option("--images", type=int, help="Read at most so many images of a split. Default: all.")
@click.option(
    "--protocol", default="lctr", show_default=True, metavar="NAME", help="lctr, tscam, maxboxacc or maxboxaccv2."
)
@click.option(
    "--tau",
    type=float,
    help="Box threshold, a share of the map's maximum. Published for tscam: 0.1 on CUB, 0.12 on ILSVRC.",
)
@click.option(
    "--tau-from",
    metavar="WHERE",
    help="model: FILE's own tau; val: the best one on the images of val; best: the best one on the evaluated images "
    "themselves. Default: model for lctr, val for tscam, best for maxboxacc and maxboxaccv2.",
)
@click.option(
    "--curve", "curves", type=PATH, multiple=True, help="Write metrics against tau, .json or .png; may be repeated."
)
@json_option
def evaluate(
    file: str,
    data: str,
    split: str,
    images: int | None,
    protocol: str,
    tau: float | None,
    tau_from: str | None,
    curves: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Measure how well FILE (.safetensors, .onnx or an engine) classifies and localizes.

    FILE@BACKEND opens it in the backend of that name, such as model.onnx@onnxruntime:cuda or
    model.safetensors@torch:compile.

    Figures of different protocols cannot be compared. maxboxacc and maxboxaccv2 are defined with the tau that is best
    on the evaluated images, and their figures are called Max for it; with --tau or --tau-from val they are called
    BoxAcc. All but lctr need a checkpoint, or a file exported with --maps all.
    """
    from engines.registry import file_and_backend
    from toolchain.curve_files import write_curves, writer_of
    from toolchain.localizer import open_localizer
    from toolchain.protocols import protocol_named
    from toolchain.scores import Trial, score

    trial = Trial(data, split, images, protocol_named(protocol), tau, tau_from, curve=bool(curves))
    for path in curves:
        writer_of(path)
    with open_localizer(*file_and_backend(file)) as localizer, terminal.steps() as step:
        found = score(localizer, file, trial, step)
    if as_json:
        print_json(found.as_dict())
    else:
        terminal.scores_table(found)
        _say_tau(found)
    # After the figures: a folder that cannot be written to must not cost them.
    for path in curves:
        write_curves(found, path)
        if not as_json:
            click.echo(path)


def _say_tau(found: Scores) -> None:
    each = ", ".join(f"{f.tau:g} for {f.title}" for f in found.figures if f.tau is not None)
    tau = each if found.tau is None else f"{found.tau:g}"
    click.echo(f"tau {tau}, {found.tau_source}; protocol {found.protocol}; {found.images_per_second:.1f} images/s.")
    if found.constant_maps:
        click.echo(f"{found.constant_maps:,} maps were constant and told nothing.")
