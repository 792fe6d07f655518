"""`lctr train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.commands import terminal
from toolchain.commands.answers import fields, print_json, say_made, selected
from toolchain.commands.options import PATH, data_option, json_option, output_option, require_suffix, seed_option
from toolchain.errors import UsageError

if TYPE_CHECKING:
    from toolchain.artifacts import Made
    from toolchain.training.run import Trained


@click.command(short_help="Train a localizer, and take its statistics.")
@click.option("--preset", required=True, metavar="NAME", help="lctr-small (the paper's), lctr-tiny or lctr-nano.")
@data_option(None)
@output_option("Checkpoint to write, .safetensors.")
@click.option("--init", type=PATH, help="Checkpoint to start from: its backbone, and its head if of the same classes.")
@click.option(
    "--recipe", "named", metavar="NAME", help="shapes, frozen, finetune, cub or ilsvrc. Default: by the data."
)
@click.option("--freeze-backbone", is_flag=True, help="Train the head alone, on cached features; needs --init.")
@click.option("--train-blocks", type=int, metavar="N", help="Train the last N blocks and the head; needs --init.")
@click.option("--images", type=int, help="Training images. Default: all.")
@click.option("--epochs", type=int, help="Default: the recipe's, as for all options down to --keep.")
@click.option("--batch-size", type=int, help="Images per step, over all processes and passes.")
@click.option("--accumulate", type=int, metavar="PASSES", help="Passes that a step's batch is cut into.")
@click.option("--learning-rate", type=float)
@click.option("--routing-rate", type=float, help="Factor on the learning rate of CDM's routing.")
@click.option("--layer-decay", type=float, help="Factor on the learning rate from a block to the one before it.")
@click.option("--weight-decay", type=float)
@click.option("--drop-path", type=float, help="Rate at which the last block is left out; falls to 0 at the first.")
@click.option("--cutmix", type=float, help="Share of the batches that are mixed.")
@click.option("--views", type=int, help="Augmented views cached of each image, where blocks are frozen.")
@click.option("--ema", type=float, metavar="DECAY", help="Keep the moving average of the weights, such as 0.999.")
@click.option("--evaluate-every", type=int, metavar="EPOCHS", help="Evaluate on the validation images; 0: at the end.")
@click.option("--keep", metavar="last|best", help="best: the weights of best Top-1 Loc on the validation images.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--workers", type=int, help="Processes that augment ahead. Default: 0 on a CPU, up to 8 for a GPU.")
@click.option("--tensorboard", type=PATH, metavar="DIR", help="Write TensorBoard's event files, too.")
@click.option(
    "--guide", type=int, metavar="EPOCHS", help="Then train a BatchNorm network, too, for `lctr synthesize --guide`."
)
@click.option("--guide-only", is_flag=True, help="That network alone, where the localizer OUTPUT is there already.")
@seed_option
@json_option
def train(
    preset: str,
    data: str,
    output: Path,
    init: Path | None,
    named: str | None,
    freeze_backbone: bool,
    train_blocks: int | None,
    images: int | None,
    device: str,
    workers: int | None,
    tensorboard: Path | None,
    guide: int | None,
    guide_only: bool,
    as_json: bool,
    **changes: Any,
) -> None:
    """Train a localizer from image-level labels, and take its statistics.

    Resumable: killed at any moment, the same command goes on from OUTPUT.state with the same numbers. Each epoch is a
    line of NAME.log.csv. Boxes are those of the validation images alone: they choose the box threshold, and with
    --keep best the weights. On several GPUs: torchrun --nproc-per-node N $(which lctr) train ...

    --guide makes NAME.guide.safetensors and its statistics: a small classifier of the same images, which has the
    BatchNorms that FDDA was published for, and that a localizer lacks.
    """
    require_suffix(output, ".safetensors")
    if freeze_backbone and train_blocks:
        raise UsageError(f"--freeze-backbone and --train-blocks {train_blocks} contradict each other: leave one out.")
    if guide_only and guide is None:
        raise UsageError("--guide-only trains the guide alone, and says not how long: add --guide EPOCHS.")
    from toolchain import stages
    from toolchain.training.guide import GuideRun
    from toolchain.training.recipes import adjusted, recipe_name, recipe_named
    from toolchain.training.run import Run

    blocks = 0 if freeze_backbone else train_blocks
    recipe = adjusted(recipe_named(named or recipe_name(data, blocks)), train_blocks=blocks, **changes)
    run = Run(preset, data, recipe, init, images, device, workers, tensorboard)
    guide_run = GuideRun(run, guide) if guide is not None else None
    with terminal.steps() as step:
        done = None if guide_only else stages.train(run, output, step=step)
        if done is None and not guide_only:
            return
        guided = stages.guide(guide_run, output, step=step) if guide_run else ()
    if done:
        _say_trained(output, init, *done, guided, as_json)
    elif as_json:
        print_json(_guide_record(guided))
    for made in () if as_json else guided:
        say_made(made)


def _say_trained(
    output: Path, init: Path | None, trained: Trained, made: Made, guided: Sequence[Made], as_json: bool
) -> None:
    validated = trained.validated
    if as_json:
        record = {"path": str(output), "statistics": str(made.artifact.path), "started": trained.started}
        judged = {"validation": fields(validated.evaluation), **selected(fields(validated), "top1", "tau")}
        print_json({**record, **judged, **({"guide": _guide_record(guided)} if guided else {})})
        return
    if trained.started:
        click.echo(f"Started from the {trained.started} of {init}.")
    if validated.evaluation:
        terminal.accuracy_table([("validation images", validated.evaluation, None)])
    else:
        click.echo(
            f"Top-1 {validated.top1:.2f} on the validation images. They have no boxes: tau is {validated.tau:g}, as "
            "published, and localization was not judged."
        )
    click.echo(f"{output}\n{made.artifact.path}")


def _guide_record(guided: Sequence[Made]) -> dict[str, Any]:
    guide, statistics = (made.artifact for made in guided)
    return {"path": str(guide.path), "statistics": str(statistics.path), **guide.metadata}
