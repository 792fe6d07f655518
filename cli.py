"""The `lctr` command line: parse, call, print."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from toolchain import __version__, terminal
from toolchain.errors import ArtifactError, LctrError, UsageError, chosen

if TYPE_CHECKING:
    from engines.backend import BuildOptions
    from engines.benchmark import Settings
    from toolchain.artifacts import Made
    from toolchain.calibration import Stated
    from toolchain.findings import Stage
    from toolchain.gates import Gates
    from toolchain.scores import Scores
    from toolchain.training.run import Trained

TRAINING_STACK = {
    *("torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "polygraphy", "matplotlib", "jinja2"),
    *("lightning_fabric", "kornia", "tensorboardX"),
}
"""What a base install does not have."""
PATH = click.Path(path_type=Path)
PLACED = ("quantized", "left_float", "gathers", "zero_activations", "zero_channels", "widened_channels")
"""What `quantize` reports by name."""
_Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class _Commands(click.Group):
    """Commands in the order of a deployment, and errors as one sentence with the exit code of their kind."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LctrError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in TRAINING_STACK:
                raise
            extra = "train" if ctx.invoked_subcommand == "train" else "compile"
            click.echo(f"Error: this command needs {package}, which is not installed: install lctr[{extra}].", err=True)
            ctx.exit(1)
        except BrokenPipeError:
            # The reader (`| head`) has seen enough; what is left in the buffer has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as error:
            reason = f"{error.filename or 'a file'} cannot be used ({error.strerror or error})"
            click.echo(f"Error: {reason}: check path, rights and space.", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="lctr")
def main() -> None:
    """From a vision transformer in PyTorch to an INT8 TensorRT engine, calibrated without real images.

    `lctr deploy` does everything, step by step and resumable; each step is a command of its own:

    \b
      train or import -> statistics -> synthesize -> export -> quantize -> build -> inspect, benchmark, evaluate

    Every result stands beside a sidecar NAME.json that says what it was made from. Exit codes: 0 done; 1 failed, with
    the reason; 2 wrong usage; 3 a bound (--max-drop, --max-p99, ...) did not hold.
    """  # noqa: D301 - a raw one would print the mark that keeps the lines apart


def _data_option(default: str | None = "shapes") -> _Decorator:
    return click.option(
        "--data",
        default=default,
        required=default is None,
        show_default=default is not None,
        metavar="SPEC",
        help="Data set: `shapes` (built in), `cub:DIR`, `ilsvrc:DIR`, `wsol:METADATA_DIR:IMAGES_DIR` or `folder:DIR`.",
    )


def _output_option(what: str, default: str | None = None) -> _Decorator:
    return click.option(
        "-o", "--output", type=PATH, required=default is None, default=default, show_default=bool(default), help=what
    )


_seed_option = click.option("--seed", default=0, show_default=True, help="The same seed gives the same result.")
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_target_option = click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="smXX",
    help="tensorrt-rtx: GPU architecture such as sm89; may be repeated. Default: what the builder calls portable.",
)
_method_option = click.option(
    "--method",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="How a tensor's range is chosen: auto, entropy, percentile, mse or max.",
)


@main.command()
@click.argument("checkpoint", type=PATH, required=False)
@_data_option()
@_output_option("Folder of all results.", "lctr-deploy")
@click.option("--count", default=512, show_default=True, help="Synthetic calibration images.")
@click.option("--steps", default=150, show_default=True, help="Training steps of the generator.")
@click.option("--test-images", type=int, help="Held-out images to evaluate on. Default: all.")
@_method_option
@_target_option
@_seed_option
@_json_option
def deploy(
    checkpoint: Path | None,
    data: str,
    output: Path,
    count: int,
    steps: int,
    test_images: int | None,
    method: str,
    targets: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Take CHECKPOINT to an INT8 engine and a report; without one, the localizer that ships with lctr.

    Needs the checkpoint's statistics beside it (`lctr train` writes them). Real images are read after the engine is
    finished, to evaluate it and to compare. A second run reuses everything that did not change.
    """
    from toolchain.pipeline import BUNDLED, Plan, deploy

    plan = Plan(
        data=data,
        calibration_images=count,
        steps=steps,
        seed=seed,
        method=method,
        targets=targets,
        test_images=test_images,
    )
    with terminal.steps() as step:
        done = deploy(checkpoint or BUNDLED, output, plan, step=step, ended=_say_stage)
    from toolchain.report import verdict

    judged = verdict(done.findings)
    if as_json:
        _print_json(
            {
                "report": str(done.report),
                "holds": judged.holds,
                "headline": judged.headline,
                "arms": [
                    {"name": a.name, "evaluation": _fields(a.evaluation), "error": _fields(a.error)}
                    for a in done.findings.arms
                ],
                "latency": done.findings.latency,
                "counts": {name: found["counts"] for name, found in done.findings.inspections.items()},
                "stages": [_fields(stage) for stage in done.findings.stages],
            }
        )
        return
    terminal.accuracy_table([(a.name, a.evaluation, a.error) for a in done.findings.arms])
    for claim in (judged.accuracy, judged.speed, *judged.compiled):
        click.echo(claim.text)
    click.echo(f"\n{done.report}")


@main.command()
@click.option("--preset", required=True, metavar="NAME", help="lctr-small (the paper's), lctr-tiny or lctr-nano.")
@_data_option(None)
@_output_option("Checkpoint to write, .safetensors.")
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
@_seed_option
@_json_option
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
    BatchNorms that synthetic images are aligned with as published, and that a localizer lacks.
    """
    _require_suffix(output, ".safetensors")
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
        _print_json(_guide_record(guided))
    for made in () if as_json else guided:
        _say_made(made)


def _say_trained(
    output: Path, init: Path | None, trained: Trained, made: Made, guided: Sequence[Made], as_json: bool
) -> None:
    validated = trained.validated
    if as_json:
        record = {"path": str(output), "statistics": str(made.artifact.path), "started": trained.started}
        judged = {"validation": _fields(validated.evaluation), **_kept(_fields(validated), "top1", "tau")}
        _print_json({**record, **judged, **({"guide": _guide_record(guided)} if guided else {})})
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


@main.command("import")
@click.argument("checkpoint", type=PATH)
@_output_option("Checkpoint to write, .safetensors.")
@click.option("--class-names", type=PATH, metavar="FILE", help="One name a line. Default: class 0, class 1, ...")
@click.option("--tau", type=float, help="Box threshold. Default: the published one, for 200 and 1000 classes.")
@_json_option
def import_(checkpoint: Path, output: Path, class_names: Path | None, tau: float | None, as_json: bool) -> None:
    """Take over CHECKPOINT, a .pth file of LCTR's authors, of DeiT or of TS-CAM.

    LCTR's becomes a localizer. DeiT's and TS-CAM's have none: they become a backbone, which `lctr train --init` starts
    from. Nothing in the file is run: one that asks for it is refused.
    """
    _require_suffix(output, ".safetensors")
    from toolchain.importing import imported

    with terminal.steps() as step:
        step("import")
        artifact, reused = imported(checkpoint, output, class_names=class_names, tau=tau)
    facts = artifact.metadata
    if as_json:
        _print_json({"path": str(output), "kind": artifact.kind, "reused": reused, **facts})
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


def _guide_options(command: Callable[..., None]) -> Callable[..., None]:
    """What names a guide; `toolchain.teachers` says what goes together."""
    options = [
        click.option(
            "--guide",
            metavar="FILE|MODULE:FACTORY",
            help="A network in MODEL's place: NAME.guide.safetensors of `lctr train --guide`, or a "
            "package.module:factory that returns any classifier. This imports and runs that module's code.",
        ),
        click.option("--num-classes", type=int, help="Of a factory's network, where no MODEL says it, as all below."),
        click.option("--image-size", type=int, metavar="PIXELS", help="Side of its input."),
        click.option("--mean", nargs=3, type=float, metavar="R G B", help="Its normalization, of pixels in [0, 1]."),
        click.option("--std", nargs=3, type=float, metavar="R G B", help="Likewise."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("model", type=PATH, required=False)
@_data_option(None)
@_output_option("Default: beside the model or guide, NAME.statistics.safetensors.", "")
@click.option("--images", type=int, help="Training images. Default: all.")
@click.option("--min-images", default=8, show_default=True, help="Fewest images that a class center is made of.")
@_guide_options
@_json_option
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

    known = teacher_named(model, guide, _stated(**stated), num_classes)
    target = known.statistics if output == Path() else output
    if target is None:
        raise UsageError(f"--guide {guide} is no file that statistics could stand beside: name one with --output.")
    _require_suffix(target, ".safetensors")
    with terminal.steps() as step:
        made = statistics(known, data, target, images=images, min_images=min_images, progress=step("statistics"))
    facts = made.artifact.metadata
    if as_json:
        kept = _kept(facts, "model_sha256", "population", "center_layers", "separation", "without_center")
        _print_json({"path": str(target), "reused": made.reused, **kept})
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
    _say_made(made)


@main.command()
@click.argument("model", type=PATH, required=False)
@click.option("--method", default="fdda", show_default=True, metavar="NAME", help="fdda, psaq or noise.")
@click.option(
    "--preset", default="fast", show_default=True, metavar="NAME", help="fast: to calibrate; paper: as published."
)
@click.option("--statistics", "bundle", type=PATH, help="Default: those beside the model or guide file.")
@click.option("--no-statistics", is_flag=True, help="Do without, where nobody has them; the images are worse.")
@click.option("--count", default=256, show_default=True, help="Images.")
@click.option("--steps", type=int, help="Of the optimizer. Default: the preset's.")
@_seed_option
@_output_option("Folder of PNG files; preview and loss curves stand beside it.", "synthetic")
@_guide_options
@_json_option
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
    network with BatchNorm, as published. A guide stands for MODEL, or for a network that is no localizer: then give
    --num-classes, --image-size, --mean and --std. Without statistics a guide's own running statistics remain.

    --method psaq changes pixels until MODEL's attention tells patches apart, and needs no statistics (PSAQ-ViT).
    --method noise is what both must beat. Parts of a method that could not be had are said.
    """
    from calib.image_set import losses_plot_of, preview_of
    from toolchain.requests import Request, bundle_for
    from toolchain.stages import synthetic
    from toolchain.teachers import teacher_named

    request = Request(**wanted)
    known = teacher_named(model, guide, _stated(mean, std, image_size), num_classes)
    used = bundle_for(request, known, bundle, no_statistics)
    with terminal.steps() as step:
        made = synthetic(known, used, output, request, progress=step("images"))
    facts = made.artifact.metadata
    if as_json:
        kept = _kept(facts, "agreement", "deviation_ratio", "final_losses", "missing")
        _print_json({"path": str(output), "reused": made.reused, **kept})
        return
    for sentence in facts["missing"]:
        click.echo(f"Warning: {sentence}", err=True)
    if facts["agreement"] is not None:
        click.echo(f"The model agrees with {facts['agreement']:.0%} of the labels.")
    _say_made(made)
    for path in (preview_of(output), losses_plot_of(output)):
        if path.exists():
            click.echo(path)


@main.command()
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
@_output_option("ONNX file to write.", "model.onnx")
@_json_option
def export(
    model: Path, precision: str, maps: str, images: Path | None, count: int | None, output: Path, as_json: bool
) -> None:
    """Export MODEL to ONNX with a dynamic batch, and compare every output with torch.

    The graph is the one for deployment: no class maps but the predicted class's, and attention that compilers can fuse.
    Input and outputs are float32 whatever the precision. Weights that fp16 cannot hold are reported, and on --images
    what each node computes; an overflow is an error.
    """
    _require_suffix(output, ".onnx")
    from toolchain import calibration
    from toolchain.stages import float_onnx

    source = calibration.folder(images, count) if images else None
    with terminal.steps() as step:
        progress = step("export and compare")
        made = float_onnx(model, output, precision=precision, maps=maps, source=source, progress=progress)
    facts = made.artifact.metadata
    parity = facts["parity"]
    if as_json:
        shown = _kept(facts, "parity", *{"float16"} & {*facts})
        _print_json({"path": str(output), "reused": made.reused, **shown})
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
    _say_made(made)


def _search_options(command: Callable[..., None]) -> Callable[..., None]:
    """What `quantize --precision auto` takes; `toolchain.search` has the defaults, and refuses what makes no sense."""
    options = [
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
        click.option(
            "--max-evaluations", type=int, metavar="N", help="auto: most graphs to measure. Default: no bound."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("model", type=PATH)
@click.option("--images", metavar="DIR|noise", help="Calibration images: a folder, or `noise`.")
@click.option("--count", type=int, help="Take so many images. Default: all of a folder, 128 of noise.")
@click.option(
    "--ranges", "range_file", type=PATH, metavar="FILE", help="Instead of images: NAME.ranges.json of before."
)
@_method_option
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
@_seed_option
@_output_option("ONNX file to write. Default: MODEL.int8.onnx (auto: MODEL.auto.onnx) beside the model.", "")
@_json_option
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
    _require_suffix(model, ".onnx")
    _require_suffix(target, ".onnx")
    if range_file:
        observing = ("images", "method", "count", "seed", "equalize", "mean", "std", "image_size")
        _require_absent("--ranges", *observing, "precision")
    if cache:
        _require_absent("--cache", "precision")
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
                stated=calibration.Stated(mean, std, image_size),
                implicit=cache is not None,
                progress=step("observe ranges"),
            )
            if search:
                whole = made.artifact.path
                made = mixed.mixed_onnx(model, whole, target, source, search, announce=_say_aside, step=step)
        if cache:
            quantization.calibration_cache(model, quantization.ranges_of(target), cache, version, keep_float=keep_float)
    facts = made.artifact.metadata
    if as_json:
        record = {"path": str(target), "reused": made.reused, "ranges_file": str(quantization.ranges_of(target))}
        kept = _kept(facts, "images", "ranges", "equalized", *PLACED, *(["sensitivity"] if search else []))
        _print_json({**record, **({"cache": str(cache)} if cache else {}), **kept})
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
    _say_made(made)


def _engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """What shapes an engine; `engines.build_options` reads it, and each backend refuses what it cannot honour."""
    options = [
        _target_option,
        click.option(
            "--batch",
            nargs=3,
            type=int,
            metavar="MIN OPT MAX",
            help="Least, tuned and largest batch. Default: 1 8 32.",
        ),
        click.option(
            "--opt-shapes",
            metavar="SHAPES",
            help="In place of --batch, where other sizes are dynamic: what to tune for, such as image:1x3x224x224; "
            "several inputs with commas.",
        ),
        click.option("--min-shapes", metavar="SHAPES", help="Likewise, least. Default: as --opt-shapes."),
        click.option("--max-shapes", metavar="SHAPES", help="Likewise, largest. Default: as --opt-shapes."),
        click.option(
            "--workspace",
            metavar="MEMORY",
            help="Scratch memory limit with its unit: 4GiB, 512MiB. Default: the builder's.",
        ),
        click.option(
            "--optimization-level",
            type=int,
            metavar="0-5",
            help="tensorrt: 0 is quick to build, 5 searches long for fast kernels. Default: the builder's own.",
        ),
        click.option(
            "--timing-cache", type=PATH, metavar="FILE", help="tensorrt: kernel timings, read and written back."
        ),
        click.option("--version-compatible", is_flag=True, help="tensorrt: run in later releases, too; can be slower."),
        click.option(
            "--hardware-compatibility",
            default="none",
            show_default=True,
            metavar="LEVEL",
            help="tensorrt: run on more GPUs than this one: ampere-plus or same-compute-capability; can be slower.",
        ),
        click.option(
            "--calibration-cache",
            type=PATH,
            metavar="FILE",
            help="tensorrt 10.x: implicit INT8 with the cache of `lctr quantize --cache`, in place of Q/DQ.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
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
@_guide_options
@_seed_option
@_output_option("Checkpoint to write, .safetensors; the graphs and the log stand beside it.")
@_json_option
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
    _require_suffix(output, ".safetensors")
    if (model is None) == (guide is None):
        raise UsageError("Name one network to fine-tune: a checkpoint MODEL, or another one with --guide.")
    if model:
        _require_absent("MODEL", "image_size", "mean", "std", "num_classes")
    from toolchain.finetuning import run
    from toolchain.finetuning.loop import Schedule
    from toolchain.finetuning.student import Bits
    from toolchain.quantization import ranges_of

    bits = Bits(weight_bits, activation_bits, first_last_bits)
    asked = run.Asked(images, bits, Schedule(**schedule), real_images, data, count, keep_float, equalize, device)
    with terminal.steps() as step:
        if model:
            done = run.finetuned_localizer(model, output, asked, step)
        else:
            assert guide is not None
            done = run.finetuned_network(guide, _stated(mean, std, image_size), num_classes, output, asked, step)
    facts, quantized = done.checkpoint.artifact.metadata, done.quantized.artifact
    if as_json:
        record = {"path": str(output), "quantized": str(quantized.path), "reused": done.checkpoint.reused}
        _print_json({**record, "deviation": done.deviation, **_kept(facts, "labels", "agreement", "epochs")})
        return
    first, last = facts["epochs"][0]["loss"], facts["epochs"][-1]["loss"]
    click.echo(f"Labels {facts['labels']}. Loss {first:.4g} in the first epoch, {last:.4g} in the last.")
    click.echo(f"On {facts['agreement']:.1%} of the synthetic images it predicts the teacher's class.")
    if done.deviation is not None:
        click.echo(f"With its optimizations ONNX Runtime deviates by {done.deviation:.1e} of the largest logit.")
    click.echo(f"{quantized.path}\n{ranges_of(quantized.path)}\n{run.log_of(output)}")
    _say_made(done.checkpoint)


@main.command()
@click.argument("models", type=PATH, nargs=-1, required=True)
@click.option("--backend", required=True, metavar="NAME", help="tensorrt-rtx, tensorrt or onnxruntime.")
@click.option("--precision", metavar="auto", help="Build all MODELS, measure them here, and ship one.")
@click.option("--data", metavar="SPEC", help="auto: data set with boxes, as for `lctr evaluate`; its val images count.")
@click.option("--max-drop", type=float, metavar="POINTS", help="auto: as for `lctr quantize`. Default: 0.5.")
@click.option("--eval-images", type=int, metavar="N", help="auto: images to judge on. Default: 256.")
@_engine_options
@click.option(
    "--min-coverage",
    type=float,
    metavar="SHARE",
    help="Share of what MODEL asks for (INT8, FP16, fused attention) that must be compiled. Default: 1; not held for "
    "onnxruntime, which chooses its kernels when it loads the file.",
)
@click.option("--fused-attention", is_flag=True, help="Refuse attention in FP32, too, which is never fused.")
@_output_option("Engine to write. Default: MODEL.engine beside the model, the first one.", "")
@_json_option
def build(
    models: tuple[Path, ...],
    backend: str,
    precision: str | None,
    data: str | None,
    max_drop: float | None,
    eval_images: int | None,
    min_coverage: float | None,
    fused_attention: bool,
    output: Path,
    as_json: bool,
    **engine_options: Any,
) -> None:
    """Build an engine of an ONNX file; needs no GPU, unless TensorRT builds or --precision auto is to measure on one.

    Where the file asks for INT8 or FP16 and the builder did not do it, that is an error with the nodes, the reasons and
    what to do, and no engine is written.

    --precision auto takes several ONNX files in order of precision, the float one first (a checkpoint stands for its
    FP32 and FP16 exports), such as fp32.onnx fp16.onnx int8.onnx. All are built and run, interleaved, at the batch size
    they are tuned for; the fastest within --max-drop ships, and of two without a difference beyond noise the more
    precise one. The first line says which, and why. The others stay in NAME.candidates, to be reused.

    An option that the backend cannot honour is refused, with what to do instead.
    """
    from engines.build_options import build_options
    from toolchain.choice import choose, question_from_options

    target = models[0].with_suffix(".engine") if output == Path() else output
    options = build_options(**engine_options)
    question = question_from_options(
        models, precision, data=data, max_drop=max_drop, eval_images=eval_images, options=options
    )
    if question is None:
        _build_one(models[0], backend, target, options, as_json, min_coverage, fused_attention)
        return
    _require_absent("--precision auto", "min_coverage", "fused_attention", "opt_shapes", "calibration_cache")
    with terminal.steps() as step:
        found = choose(models, backend, target, question, step)
    if as_json:
        _print_json({"path": str(target), **found.artifact.metadata["choice"], "chosen": found.decision.winner})
        return
    click.echo(found.decision.verdict)
    terminal.latency_table(found.latency.as_dict())
    terminal.accuracy_table([(name, a.evaluation, a.error) for name, a in found.accuracy.items()])
    click.echo(target)


@main.command()
@click.argument("file", type=PATH)
@click.option("--losses", is_flag=True, help="List only what has something to gain.")
@click.option("--nodes", is_flag=True, help="List the kernel of every node, not of products alone; of an engine.")
@_json_option
def inspect(file: Path, losses: bool, nodes: bool, as_json: bool) -> None:
    """Show how every linear layer, convolution and attention product of FILE is computed, by ONNX node.

    FILE is an engine, or an ONNX file as ONNX Runtime runs it here.
    """
    from engines.inspect import inspect

    with terminal.steps() as step:
        step("inspect")
        found = inspect(file)
    if as_json:
        _print_json(found.as_dict())
        return
    if nodes:
        terminal.nodes_table(found)
    terminal.inspection_table(str(file), found, losses_only=losses)
    for line in terminal.inspection_totals(found):
        click.echo(line)


@main.command()
@click.argument("file")
@_data_option()
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
@_json_option
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
        _print_json(found.as_dict())
    else:
        terminal.scores_table(found)
        _say_tau(found)
    # After the figures: a folder that cannot be written to must not cost them.
    for path in curves:
        write_curves(found, path)
        if not as_json:
            click.echo(path)


@main.command()
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--reference", metavar="FILE", help="What the others are compared with, timed with them. Default: the first."
)
@click.option("--batch", "sizes", multiple=True, default=("1,8",), show_default=True, help="1,8,32; may be repeated.")
@click.option(
    "--duration", default="3s", show_default=True, help="Timed seconds per file and batch size; 10 calls at least."
)
@click.option("--warm-up", "--warmup", default="200ms", show_default=True, help="Untimed, per file and batch size.")
@click.option("--rounds", default=10, show_default=True, help="Interleaved rounds that the duration is cut into.")
@click.option("--iterations", type=int, help="Timed calls per round. Default: as many as fill --duration.")
@click.option("--streams", default=1, show_default=True, help="Calls in flight at a time (trtexec's --infStreams).")
@click.option("--cuda-graph/--no-cuda-graph", default=None, help="Replay a captured graph. Default: where it can.")
@click.option("--spin-wait", is_flag=True, help="Wait for the GPU in a busy loop.")
@click.option("--no-transfers", "--no-data-transfers", is_flag=True, help="Leave inputs and outputs on the GPU.")
@click.option("--cold-cache", is_flag=True, help="Empty the last-level cache before every call.")
@click.option("--runtime-cache", type=PATH, metavar="DIR", help="TensorRT-RTX: keep what first runs compile in DIR.")
@click.option("--data", metavar="SPEC", help="Measure accuracy too, on the test images of this data set.")
@click.option("--images", type=int, help="Test images. Default: all.")
@click.option("--max-drop", type=float, metavar="POINTS", help="Bound on what a file loses of GT-Known or Top-1 Loc.")
@click.option("--max-p99", metavar="TIME", help="Bound on the p99 latency at the smallest batch size, such as 5ms.")
@click.option("--min-throughput", type=float, metavar="IMAGES/S", help="Bound on it at the largest batch size.")
@click.option("--max-energy", metavar="ENERGY", help="Bound on it per image, such as 40mJ, at the largest batch size.")
@click.option("-o", "--output", type=PATH, help="JSON file to write, with every sample.")
@click.option("--plot", type=PATH, help="PNG file to write: latency against accuracy, and the Pareto front.")
@_seed_option
@_json_option
def benchmark(
    files: tuple[str, ...],
    reference: str | None,
    sizes: tuple[str, ...],
    data: str | None,
    images: int | None,
    output: Path | None,
    plot: Path | None,
    runtime_cache: Path | None,
    seed: int,
    as_json: bool,
    **measured: Any,
) -> None:
    """Compare FILES (FILE is .onnx, an engine or a checkpoint; FILE@BACKEND as for `lctr evaluate`) with the first.

    All are timed in one process in turns; ratios of medians come with a 95 % interval over the rounds. Figures have
    trtexec's names, and so have options: --duration (s), --warm-up (ms), --iterations, --streams, --cuda-graph,
    --spin-wait, --no-transfers. trtexec's own defaults differ between versions 10 and 11; what held is printed.

    A bound fails (exit code 3) where the whole interval of a figure is beyond it. Within noise it passes with a
    warning; a figure that nobody knows, or an engine whose outputs are broken, exits with 1.
    """
    from toolchain.benchmarking import Question, compared, sizes_from_options, write_record
    from toolchain.pareto_plot import check_plot, draw

    gates, settings = _gates_and_settings(**measured)
    question = Question(files, reference, sizes_from_options(sizes), settings, data, images, seed, gates, runtime_cache)
    if output:
        _require_suffix(output, ".json")
    if plot:
        check_plot(plot)
    with terminal.steps() as step:
        found = compared(question, step)
    record = found.as_dict()
    if as_json:
        _print_json(record)
    else:
        terminal.benchmark_tables(record["latency"])
        terminal.accuracy_table([(name, each.evaluation, each.error) for name, each in found.accuracy.items()])
    for warning in found.warnings:
        _say_aside(f"Warning: {warning}")
    if output:
        write_record(found, output)
    if plot:
        draw(record, plot)
    found.enforce()


@main.command()
@click.argument("file")
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, help="Folder to write overlays to, one PNG per image.")
def localize(file: str, images: tuple[Path, ...], output: Path | None) -> None:
    """Find the object in each of IMAGES with FILE (.safetensors, .onnx or an engine); prints JSON.

    FILE@BACKEND opens it in the backend of that name, as for `lctr evaluate`. Boxes are x0, y0, x1, y1 in pixels of the
    image.
    """
    import numpy as np

    from engines.registry import file_and_backend
    from toolchain.localizer import localize, open_localizer
    from toolchain.overlay import localized, png_bytes
    from toolchain.preprocessing import read_image

    pictures = [(path, read_image(path)) for path in images]
    found = []
    with open_localizer(*file_and_backend(file)) as localizer, terminal.steps() as step:
        progress = step("localize")
        for done, (path, picture) in enumerate(pictures, 1):
            result = localize(localizer, picture)
            record = {"image": str(path), **result.as_dict()}
            if output:
                drawn = localized(np.asarray(picture), result.window, result.map, result.box)
                record["overlay"] = str(_write_overlay(png_bytes(drawn), output, path))
            found.append(record)
            progress(done, len(pictures))
    _print_json(found)


@main.command()
@click.argument("file", type=PATH)
@click.option("--format", "format_", required=True, metavar="NAME", help="triton or folder.")
@_output_option("Folder to write.")
@click.option("--name", help="Of the model in Triton. Default: after FILE.")
@click.option("--max-batch", type=int, help="Largest batch. Default: what the engine was built for; 32 for ONNX.")
@click.option("--instances", default=1, show_default=True, help="Copies of the model that run at a time.")
@click.option("--queue-delay", default="100us", show_default=True, help="How long a request waits to be batched.")
@click.option("--device", help="gpu or cpu. Default: gpu for TensorRT, cpu for ONNX.")
def package(
    file: Path,
    format_: str,
    output: Path,
    name: str | None,
    max_batch: int | None,
    instances: int,
    queue_delay: str,
    device: str | None,
) -> None:
    """Package FILE (.onnx or an engine) for those who do not have lctr.

    triton: a model repository for Triton Inference Server, with a client. folder: the file with its preprocessing, its
    class names, and a short program that runs it. Both tell in a README.md how to use them.
    """
    if format_ != "triton":
        _require_absent(f"--format {format_}", "name", "max_batch", "instances", "queue_delay", "device")
    from toolchain.packaging.package import package
    from toolchain.packaging.triton import TritonOptions, microseconds

    options = TritonOptions(name, max_batch, instances, microseconds(queue_delay), device)
    _say_made(package(file, format_, output, options))


@main.command()
@click.argument("path", type=PATH)
@_json_option
def verify(path: Path, as_json: bool) -> None:
    """Check PATH, an artifact or a folder of them, against the sidecars, and show what was made from what."""
    from toolchain.lineage import verify

    checked = verify(path)
    if as_json:
        _print_json([_fields(artifact) for artifact in checked])
    else:
        rows = [
            [
                artifact.path.name,
                artifact.kind,
                "changed" if artifact.problem else "whole",
                ", ".join(f"{p.role}: {p.path.name if p.path else p.sha256[:12]}" for p in artifact.parents),
            ]
            for artifact in checked
        ]
        terminal.table(str(path), ["artifact", "kind", "content", "made from"], rows)
    problems = [artifact.problem for artifact in checked if artifact.problem]
    if problems:
        raise ArtifactError(problems[0] if len(problems) == 1 else f"{len(problems)} artifacts: " + " ".join(problems))


@main.command()
@click.option("--for", "purpose", metavar="NAME", help="Exit 1 where this cannot work: benchmark, build or train.")
@_json_option
def doctor(purpose: str | None, as_json: bool) -> None:
    """Show what this machine can do, what is missing or broken, and what installs it.

    Needs no extra, and survives an installation that crashes when it is imported.
    """
    from toolchain.doctor.diagnosis import PURPOSES, diagnose, require

    if purpose:
        chosen("--for", purpose, PURPOSES)
    found = diagnose()
    if as_json:
        _print_json(found.as_dict())
    else:
        terminal.findings_table(found.findings)
    if purpose:
        require(found, purpose)


def _stated(
    mean: tuple[float, float, float] | None, std: tuple[float, float, float] | None, image_size: int | None
) -> Stated:
    from toolchain.calibration import Stated

    return Stated(mean, std, image_size)


def _require_suffix(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise UsageError(f"{path} does not end in {suffix}: name a {suffix} file.")


def _require_absent(option: str, *others: str) -> None:
    """Refuse options that `option` leaves without a meaning."""
    context = click.get_current_context()
    for name in others:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{option} and --{name.replace('_', '-')} contradict each other: leave one out.")


def _gates_and_settings(
    max_drop: float | None,
    max_p99: str | None,
    min_throughput: float | None,
    max_energy: str | None,
    duration: str,
    warm_up: str,
    rounds: int,
    iterations: int | None,
    no_transfers: bool,
    **timing: Any,
) -> tuple[Gates, Settings]:
    """What the options of `benchmark` bound and ask for."""
    from engines.benchmark import Settings
    from engines.timing import TimingOptions
    from toolchain.gates import Gates
    from toolchain.quantities import DURATION, ENERGY, LATENCY, WARM_UP, quantity

    if iterations is not None:
        _require_absent("--iterations", "duration")
    gates = Gates(
        max_drop,
        quantity("--max-p99", max_p99, LATENCY) if max_p99 else None,
        min_throughput,
        quantity("--max-energy", max_energy, ENERGY) if max_energy else None,
    )
    settings = Settings(
        warmup=0,
        rounds=rounds,
        iterations=iterations,
        duration=quantity("--duration", duration, DURATION),
        warmup_ms=quantity("--warm-up", warm_up, WARM_UP),
        timing=TimingOptions(transfers=not no_transfers, **timing),
    )
    return gates, settings


def _guide_record(guided: Sequence[Made]) -> dict[str, Any]:
    guide, statistics = (made.artifact for made in guided)
    return {"path": str(guide.path), "statistics": str(statistics.path), **guide.metadata}


def _write_overlay(png: bytes, folder: Path, image: Path) -> Path:
    from toolchain.artifacts import writing

    target = folder / f"{image.stem}.localized.png"
    with writing(target) as temporary:
        temporary.write_bytes(png)
    return target


def _fields(value: Any) -> Any:
    from dataclasses import asdict

    return asdict(value) if value is not None else None


def _kept(record: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: record[key] for key in keys}


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, default=str))


def _say_made(made: Made) -> None:
    if made.reused:
        click.echo("Unchanged: reused.")
    click.echo(made.artifact.path)


def _say_tau(found: Scores) -> None:
    each = ", ".join(f"{f.tau:g} for {f.title}" for f in found.figures if f.tau is not None)
    tau = each if found.tau is None else f"{found.tau:g}"
    click.echo(f"tau {tau}, {found.tau_source}; protocol {found.protocol}; {found.images_per_second:.1f} images/s.")
    if found.constant_maps:
        click.echo(f"{found.constant_maps:,} maps were constant and told nothing.")


def _build_one(
    model: Path,
    backend: str,
    target: Path,
    options: BuildOptions,
    as_json: bool,
    min_coverage: float | None,
    fused_attention: bool,
) -> None:
    from dataclasses import replace

    from engines.build import build
    from engines.onnx_graph import graph_from_onnx

    _require_suffix(model, ".onnx")
    start = time.monotonic()
    with terminal.steps() as step:
        travelling = replace(options, metadata=graph_from_onnx(model).metadata)
        _, reused = build(
            model,
            backend,
            target,
            travelling,
            step("build"),
            min_coverage=min_coverage,
            every_attention=fused_attention,
        )
    if as_json:
        _print_json({"path": str(target), "reused": reused})
        return
    click.echo("Unchanged: reused." if reused else f"Built in {time.monotonic() - start:.1f} s.")
    click.echo(target)


def _say_aside(sentence: str) -> None:
    click.echo(sentence, err=True)


def _say_stage(stage: Stage) -> None:
    click.echo(f"{stage.name:<44} {'reused' if stage.reused else f'{stage.seconds:.1f} s'}", err=True)


if __name__ == "__main__":
    main()
