"""`lctr benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolchain.commands import terminal
from toolchain.commands.answers import print_json, say_aside
from toolchain.commands.options import PATH, json_option, require_absent, require_suffix, seed_option

if TYPE_CHECKING:
    from engines.benchmark import Settings
    from toolchain.gates import Gates


@click.command(short_help="Compare files: latency, throughput, outputs, accuracy.")
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
@seed_option
@json_option
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
        require_suffix(output, ".json")
    if plot:
        check_plot(plot)
    with terminal.steps() as step:
        found = compared(question, step)
    record = found.as_dict()
    if as_json:
        print_json(record)
    else:
        terminal.benchmark_tables(record["latency"])
        terminal.accuracy_table([(name, each.evaluation, each.error) for name, each in found.accuracy.items()])
    for warning in found.warnings:
        say_aside(f"Warning: {warning}")
    if output:
        write_record(found, output)
    if plot:
        draw(record, plot)
    found.enforce()


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
        require_absent("--iterations", "duration")
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
