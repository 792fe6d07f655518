"""`lctr finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolchain.commands import terminal
from toolchain.commands.answers import print_json, say_aside, say_made, selected
from toolchain.commands.options import (
    PATH,
    guide_options,
    input_stated,
    json_option,
    output_option,
    require_absent,
    require_suffix,
    seed_option,
)
from toolchain.errors import UsageError

FEW_RIGHT = 0.5
"""Share of the labels under which cross-entropy teaches more errors than classes."""


@click.command(short_help="Tune a network as it will be quantized.")
@click.argument("model", type=PATH, required=False)
@click.option("--images", type=PATH, required=True, metavar="DIR", help="Synthetic images, of `lctr synthesize`.")
@click.option("--real-images", type=PATH, metavar="DIR", help="Real images beside them; their labels are not needed.")
@click.option("--data", metavar="SPEC", help="Or a data set, whose training images have labels.")
@click.option("--count", type=int, help="Take so many real images. Default: all.")
@click.option("--weight-bits", default=8, show_default=True, help="4 to 8, per output channel.")
@click.option("--activation-bits", default=8, show_default=True, help="4 to 8, per tensor.")
@click.option("--first-last-bits", default=8, show_default=True, help="Of both in the first and the last product.")
@click.option("--epochs", default=20, show_default=True, help="Passes over the synthetic images.")
@click.option("--learning-rate", default=1e-6, show_default=True, help="At the start; 0 observes ranges alone.")
@click.option("--batch-size", default=16, show_default=True, help="Synthetic images in a step; real ones come beside.")
@click.option("--range-epochs", default=4, show_default=True, help="Epochs until the ranges are frozen.")
@click.option("--learn-scales", is_flag=True, help="Tune the activations' scales then, instead.")
@click.option("--keep-float", multiple=True, metavar="PATTERN", help="As for `lctr quantize`; may be repeated.")
@click.option("--equalize/--no-equalize", default=True, show_default=True, help="As for `lctr quantize`.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@guide_options
@seed_option
@output_option("Checkpoint to write, .safetensors; the graphs and the log stand beside it.")
@json_option
def finetune(
    model: Path | None,
    guide: str | None,
    images: Path,
    real_images: Path | None,
    data: str | None,
    count: int | None,
    weight_bits: int,
    activation_bits: int,
    first_last_bits: int,
    keep_float: tuple[str, ...],
    equalize: bool,
    image_size: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    num_classes: int | None,
    device: str,
    output: Path,
    as_json: bool,
    **schedule: Any,
) -> None:
    """Fine-tune MODEL as it will be quantized, to answer like its float self on synthetic images.

    The student quantizes what `lctr quantize` does, in the same places; the loss is cross-entropy on the images' labels
    (the teacher's predictions where none are recorded) and the distance from the teacher's soft answers. NAME.int8.onnx
    has the very levels and scales that were tuned; NAME.onnx is its float graph, NAME.log.csv has a line per epoch.
    Under 8 bits it shows what accuracy such a network would have: its levels are carried in INT8, and nothing computes
    faster for it.

    --guide tunes any classifier, BatchNorm included: its statistics stay, its factors are folded as the export does. A
    guide of ours becomes another one, a factory's network a state dict.
    Killed at any moment, the same command goes on after the last whole epoch, from OUTPUT.state.
    """
    require_suffix(output, ".safetensors")
    if (model is None) == (guide is None):
        raise UsageError("Name one network to fine-tune: a checkpoint MODEL, or another one with --guide.")
    if model:
        require_absent("MODEL", "image_size", "mean", "std", "num_classes")
    from toolchain.finetuning import run
    from toolchain.finetuning.loop import Schedule
    from toolchain.finetuning.results import log_of
    from toolchain.finetuning.student import Bits
    from toolchain.quantization import ranges_of

    bits = Bits(weight_bits, activation_bits, first_last_bits)
    asked = run.Asked(images, bits, Schedule(**schedule), real_images, data, count, keep_float, equalize, device)
    with terminal.steps() as step:
        if model:
            done = run.finetuned_localizer(model, output, asked, step)
        else:
            assert guide is not None
            done = run.finetuned_network(guide, input_stated(mean, std, image_size), num_classes, output, asked, step)
    facts, quantized = done.checkpoint.artifact.metadata, done.quantized.artifact
    if facts["label_agreement"] < FEW_RIGHT:
        say_aside(
            f"Warning: the teacher predicts {facts['label_agreement']:.0%} of the recorded labels, so the student was "
            "taught wrong ones: synthesize images with more --steps."
        )
    if as_json:
        record = {"path": str(output), "quantized": str(quantized.path), "reused": done.checkpoint.reused}
        print_json(
            {
                **record,
                "deviation": done.deviation,
                **selected(facts, "labels", "label_agreement", "agreement", "epochs"),
            }
        )
        return
    first, last = facts["epochs"][0]["loss"], facts["epochs"][-1]["loss"]
    click.echo(f"Labels {facts['labels']}. Loss {first:.4g} in the first epoch, {last:.4g} in the last.")
    click.echo(f"On {facts['agreement']:.1%} of the synthetic images it predicts the teacher's class.")
    if done.deviation is not None:
        click.echo(f"With its optimizations ONNX Runtime deviates by {done.deviation:.1e} of the largest logit.")
    click.echo(f"{quantized.path}\n{ranges_of(quantized.path)}\n{log_of(output)}")
    say_made(done.checkpoint)
