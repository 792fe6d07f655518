"""`lctr quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolchain.commands import terminal
from toolchain.commands.answers import print_json, say_aside, say_made, selected
from toolchain.commands.options import (
    PATH,
    input_stated,
    json_option,
    method_option,
    output_option,
    require_absent,
    require_suffix,
    seed_option,
    together,
)

PLACED = ("quantized", "left_float", "gathers", "zero_activations", "zero_channels", "widened_channels")
"""What `quantize` reports by name."""


_search_options = together(
    click.option(
        "--precision",
        default="int8",
        show_default=True,
        metavar="NAME",
        help="int8: everything; auto: all but the smallest set found that has to stay float, by measurements.",
    ),
    click.option(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="auto: what GT-Known Loc and Top-1 Loc may lose on the val images of --data. Default: 0.5.",
    ),
    click.option("--data", metavar="SPEC", help="auto: data set with boxes, as for `lctr evaluate`."),
    click.option(
        "--min-snr",
        type=float,
        metavar="DB",
        help="auto, without --data: signal-to-noise that logits and map must keep on the calibration images.",
    ),
    click.option("--by", metavar="NAME", help="auto: what is left float at once, node or block. Default: node."),
    click.option("--eval-images", type=int, metavar="N", help="auto: images to judge on. Default: 256."),
    click.option("--max-evaluations", type=int, metavar="N", help="auto: most graphs to measure. Default: no bound."),
)
"""What `quantize --precision auto` takes; `toolchain.search` has the defaults, and refuses what makes no sense."""


@click.command(short_help="Insert INT8 Q/DQ into any ONNX file.")
@click.argument("model", type=PATH)
@click.option("--images", metavar="DIR|noise", help="Calibration images: a folder, or `noise`.")
@click.option("--count", type=int, help="Take so many images. Default: all of a folder, 128 of noise.")
@click.option(
    "--ranges", "range_file", type=PATH, metavar="FILE", help="Instead of images: NAME.ranges.json of before."
)
@method_option
@click.option("--keep-float", multiple=True, metavar="PATTERN", help="Node names to leave float; may be repeated.")
@click.option(
    "--equalize/--no-equalize",
    default=True,
    show_default=True,
    help="Move the spread between an activation's channels into the weights first.",
)
@click.option("--attention", default="none", show_default=True, metavar="NAME", help="Attention in INT8: none or all.")
@click.option("--mean", nargs=3, type=float, metavar="R G B", help="Of pixels in [0, 1], where MODEL does not say it.")
@click.option("--std", nargs=3, type=float, metavar="R G B", help="Likewise.")
@click.option("--image-size", type=int, metavar="PIXELS", help="Likewise, where MODEL takes any.")
@click.option("--cache", type=PATH, metavar="FILE", help="Write a calibration cache for TensorRT 10.x, too.")
@click.option("--cache-version", default="10.13.0", show_default=True, help="Of the TensorRT that reads the cache.")
@_search_options
@seed_option
@output_option("ONNX file to write. Default: MODEL.int8.onnx (auto: MODEL.auto.onnx) beside the model.", "")
@json_option
def quantize(
    model: Path,
    images: str | None,
    count: int | None,
    range_file: Path | None,
    method: str,
    keep_float: tuple[str, ...],
    equalize: bool,
    attention: str,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    image_size: int | None,
    cache: Path | None,
    cache_version: str,
    seed: int,
    output: Path,
    as_json: bool,
    **search_options: Any,
) -> None:
    """Insert explicit INT8 Q/DQ into the ONNX file MODEL, with ranges observed on calibration images.

    MODEL is any ONNX file with one input of square RGB images. Quantized: every linear layer and convolution. Left
    float, and why, is listed; CDM's routing always is, attention products unless --attention all quantizes the four
    operands of each.

    Linear layers are equalized first, by powers of two that the outputs do not notice, folded into a LayerNorm or
    applied by a Mul. What was, and how, is listed.

    The ranges stand beside the result in NAME.ranges.json, and --ranges takes them, and the factors of the
    equalization, for the same MODEL without images. --cache is for a builder in implicit INT8 mode, which takes MODEL
    itself, so it goes with --no-equalize; a TensorRT of another version drops it.

    --precision auto quantizes everything (NAME.int8.onnx), measures each node with only it in INT8 and with only it in
    float, and leaves the smallest set float with which the bound holds; what it says of the result was measured on the
    result. All figures stand in NAME.sensitivity.json, the ranking is drawn in NAME.sensitivity.png. Killed at any
    moment, the same command goes on.
    """
    suffix = ".auto.onnx" if search_options["precision"] == "auto" else ".int8.onnx"
    target = model.with_suffix(suffix) if output == Path() else output
    require_suffix(model, ".onnx")
    require_suffix(target, ".onnx")
    if range_file:
        observing = ("images", "method", "count", "seed", "equalize", "mean", "std", "image_size")
        require_absent("--ranges", *observing, "precision")
    if cache:
        require_absent("--cache", "precision")
    from exporters.calibration_cache import version_number
    from toolchain import calibration, mixed, quantization
    from toolchain.range_table import range_words
    from toolchain.search import search_from_options

    version = version_number(cache_version)
    search = search_from_options(**search_options)
    with terminal.steps() as step:
        if range_file:
            step("take ranges")
            made = quantization.int8_from_ranges(model, range_file, target, keep_float=keep_float, attention=attention)
        else:
            source = calibration.source_named(images, count, seed)
            made = quantization.int8_onnx(
                model,
                source,
                mixed.everything_of(target) if search else target,
                method=method,
                keep_float=keep_float,
                equalize=equalize,
                attention=attention,
                stated=input_stated(mean, std, image_size),
                implicit=cache is not None,
                progress=step("observe ranges"),
            )
            if search:
                whole = made.artifact.path
                made = mixed.mixed_onnx(model, whole, target, source, search, announce=say_aside, step=step)
        if cache:
            quantization.calibration_cache(model, quantization.ranges_of(target), cache, version, keep_float=keep_float)
    facts = made.artifact.metadata
    if as_json:
        record = {"path": str(target), "reused": made.reused, "ranges_file": str(quantization.ranges_of(target))}
        kept = selected(facts, "images", "ranges", "equalized", *PLACED, *(["sensitivity"] if search else []))
        print_json({**record, **({"cache": str(cache)} if cache else {}), **kept})
        return
    terminal.equalization_table(facts["equalized"])
    terminal.placement_tables(facts)
    click.echo(f"{len(facts['quantized'])} products quantized on {facts['images']} images.")
    click.echo(f"{range_words(facts['ranges'])} (each in {quantization.ranges_of(target)}).")
    if cache:
        click.echo(cache)
    if search:
        terminal.sensitivity_table(facts["sensitivity"])
        click.echo(f"{mixed.summary(facts['sensitivity'])}\n{mixed.ledger_of(target)}\n{mixed.plot_of(target)}")
    say_made(made)
