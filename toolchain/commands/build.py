"""`lctr build`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.commands import terminal
from toolchain.commands.answers import print_json
from toolchain.commands.options import (
    PATH,
    json_option,
    output_option,
    require_absent,
    require_suffix,
    target_option,
    together,
)

if TYPE_CHECKING:
    from engines.backend import BuildOptions


_engine_options = together(
    target_option,
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
    click.option("--timing-cache", type=PATH, metavar="FILE", help="tensorrt: kernel timings, read and written back."),
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
)
"""What shapes an engine; `engines.build_options` reads it, and each backend refuses what it cannot honour."""


@click.command(short_help="Build an engine of an ONNX file.")
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
@output_option("Engine to write. Default: MODEL.engine beside the model, the first one.", "")
@json_option
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
    require_absent("--precision auto", "min_coverage", "fused_attention", "opt_shapes", "calibration_cache")
    with terminal.steps() as step:
        found = choose(models, backend, target, question, step)
    if as_json:
        print_json({"path": str(target), **found.artifact.metadata["choice"], "chosen": found.decision.winner})
        return
    click.echo(found.decision.verdict)
    terminal.latency_table(found.latency.as_dict())
    terminal.accuracy_table([(name, a.evaluation, a.error) for name, a in found.accuracy.items()])
    click.echo(target)


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

    require_suffix(model, ".onnx")
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
        print_json({"path": str(target), "reused": reused})
        return
    click.echo("Unchanged: reused." if reused else f"Built in {time.monotonic() - start:.1f} s.")
    click.echo(target)
