"""Tables and progress bars, the only place that draws on a terminal.

What draws is imported when there is something to draw: help is asked for more often.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.progress import Progress, Step, unwatched

if TYPE_CHECKING:
    from engines.inspection import Inspection
    from toolchain.doctor.finding import Finding
    from toolchain.evaluation import Evaluation, OutputError
    from toolchain.scores import Scores


NOTABLE_SHARE = 0.01
"""Of a tensor's values that float16 holds as subnormals: fewer are in every tensor around 0, and nobody's loss."""
NOTABLE_MAGNITUDE = 65504 / 8
"""From here on a factor of 8 on other images overflows float16."""


def accuracy_table(rows: Sequence[tuple[str, Evaluation, OutputError | None]]) -> None:
    """Accuracy by name, and where it is known the distance from the reference's outputs."""
    plain = ["", "protocol", "images", "Top-1", "GT-Known Loc", "Top-1 Loc"]
    columns = [*plain, "logits SNR", "map SNR", "same box", "same class"]
    cells = []
    for name, found, error in rows:
        metrics = [f"{value:.2f}" for value in (found.top1, found.gt_known_loc, found.top1_loc)]
        distance = [f"{error.logits_snr_db:.1f} dB", f"{error.map_snr_db:.1f} dB"] if error else ["", ""]
        agreement = [f"{error.box_agreement:.1f} %", f"{error.top1_agreement:.1f} %"] if error else ["", ""]
        cells.append([name, found.protocol, f"{found.images:,}", *metrics, *distance, *agreement])
    used = [k for k in range(len(columns)) if k < len(plain) or any(row[k] for row in cells)]
    table("", [columns[k] for k in used], [[row[k] for k in used] for row in cells])


def scores_table(found: Scores) -> None:
    """Every figure of one protocol."""
    columns = ["", "protocol", "images", "Top-1", "Top-5", *(figure.title for figure in found.figures)]
    rates = [f"{rate:.2f}" for rate in (found.top1, found.top5, *(figure.value for figure in found.figures))]
    table("", columns, [[Path(found.file).name, found.protocol, f"{found.images:,}", *rates]])


def latency_table(latency: Mapping[str, Any]) -> None:
    """`Benchmark.as_dict`, one line for each batch size and file."""
    from toolchain.commands import benchmark_tables

    table(*benchmark_tables.comparison(latency))


def benchmark_tables(latency: Mapping[str, Any]) -> None:
    """The same, then every figure by trtexec's names, what held while it was measured, and what NVML counted."""
    from toolchain.commands import benchmark_tables

    for drawn in (
        benchmark_tables.comparison(latency),
        benchmark_tables.figures(latency),
        benchmark_tables.settings(latency),
        benchmark_tables.gpu(latency),
    ):
        table(*drawn)


def equalization_table(equalized: Sequence[Mapping[str, Any]]) -> None:
    """The activations whose channels were evened out: `equalized` in the metadata of a quantized ONNX file."""
    rows = [
        [each["activation"], f"2^{each['least']} to 2^{each['largest']}", each["how"], ", ".join(each["linears"])]
        for each in equalized
    ]
    table("equalized", ["activation", "factors", "how", "into the weights of"], rows)


def inspection_table(name: str, found: Inspection, *, losses_only: bool = False) -> None:
    """What every product was compiled to, then each loss with its rule and what to do."""
    shown = found.losses if losses_only else found.products
    columns = ["ONNX node", "kind", "asked", "type", "kernel", "what is lost"]
    rows = [[p.name, p.kind, p.asked, p.type, p.kernel, p.loss.reason if p.loss else ""] for p in shown]
    table(f"{name} ({found.backend}; {found.evidence})", columns, rows)
    lost = Counter(p.loss for p in found.losses if p.loss)
    columns = ["what is lost", "nodes", "rule", "what to do"]
    table("", columns, [[loss.reason, str(n), loss.rule, loss.fix] for loss, n in lost.items()])


def nodes_table(found: Inspection) -> None:
    """The compiled layers of every ONNX node."""
    columns = ["ONNX node", "operator", "compiled layers that name it", "which write"]
    table("", columns, [[n.name, n.op, ", ".join(n.kernels), ", ".join(n.types)] for n in found.nodes])


def inspection_totals(found: Inspection) -> list[str]:
    """A line for each total, and one for each that is not known."""
    lines = []
    for kind, types in found.counts.items():
        total = sum(types.values())
        lines.append(f"{kind}: {', '.join(f'{n} of {total} {type_}' for type_, n in types.items())}")
    totals = found.totals
    lines.append(f"INT8: {totals['int8']} of {totals['int8_possible']} possible, {totals['int8_asked']} asked for")
    lines.append(f"attention fused: {totals['attention_fused']} of {totals['attention_possible']} possible")
    lines.append(f"layers: {found.layers}, fused attention kernels: {found.fused_attention}")
    if found.weight_bytes is not None:
        parts = ", ".join(f"{count:,} in {type_}" for type_, count in sorted(found.weight_bytes.items()))
        lines.append(f"weight bytes: {totals['weight_bytes']:,} ({parts})")
    if found.activation_bytes is not None:
        lines.append(f"activation bytes written: {found.activation_bytes:,}")
    return [*lines, *(f"not known: {reason}" for reason in found.untold)]


def placement_tables(facts: Mapping[str, Any]) -> None:
    """What Q/DQ insertion changed and what it left, by name: the metadata of a quantized ONNX file."""
    changed = [[name, "int8 x int8"] for name in facts["quantized"]]
    changed += [[name, "reads the int8 levels of a quantized weight"] for name in facts["gathers"]]
    changed += [[name, "was 0 on every image: whatever else comes is clipped"] for name in facts["zero_activations"]]
    changed += [[name, f"output channels of zeros: {count}"] for name, count in facts["zero_channels"].items()]
    changed += [[name, f"scales widened for the bias: {count}"] for name, count in facts["widened_channels"].items()]
    table("quantized", ["node or tensor", "how"], changed)
    table("left float", ["node", "why"], [[name, reason] for name, reason in facts["left_float"].items()])


def float16_table(found: Mapping[str, Any]) -> None:
    """`Float16.as_dict`: what float16 holds badly."""
    columns = ["", "largest", "under 2^-14", "under 2^-24"]
    for title, held in (("weights", found["weights"]), (f"nodes, on {found['images']} images", found["activations"])):
        notable = [h for h in held if h["subnormal"] >= NOTABLE_SHARE or h["amax"] >= NOTABLE_MAGNITUDE]
        rows = [[h["name"], f"{h['amax']:.3g}", f"{h['subnormal']:.1%}", f"{h['vanishing']:.1%}"] for h in notable]
        table(f"FP16: {len(notable)} of {len(held)} {title}", columns, rows)


def sensitivity_table(record: Mapping[str, Any], limit: int = 12) -> None:
    """What the costliest units cost, and those that stay float: `toolchain.mixed`'s record."""
    left = record["result"]["left_float"]
    shown = [unit for k, unit in enumerate(record["ranking"]) if k < limit or unit["unit"] in left]
    rows = [
        [
            unit["unit"],
            _cost(unit["only_quantized"]),
            _cost(unit["only_float"]),
            "stays float" if unit["unit"] in left else "INT8",
        ]
        for unit in shown
    ]
    rest = f" (the first {limit} of {len(record['ranking'])})" if len(shown) < len(record["ranking"]) else ""
    columns = [record["by"] + rest, "loss with only it INT8", "loss with only it float", ""]
    table("", columns, rows)


def findings_table(findings: Sequence[Finding]) -> None:
    """What `doctor` looked at, and what to do about it."""
    rows = [[f.name, "" if f.state == "ok" else f.state, f.found, f.remedy] for f in findings]
    table("", ["", "", "found", "what to do"], rows)


def _cost(quality: Mapping[str, Any]) -> str:
    from toolchain.probe import db_from_noise

    snr = f"{db_from_noise(max(quality['logits_noise'], quality['map_noise'])):.1f} dB"
    return snr if quality["lost"] is None else f"{quality['lost']:.2f} points, {snr}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; nothing where there are no rows."""
    from rich.console import Console
    from rich.table import Table

    if not rows:
        return
    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for k, column in enumerate(columns):
        drawn.add_column(column, justify="left" if k == 0 or not _numeric(rows, k) else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    # A pipe has no width: lines stay whole for whoever reads them.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False)
    console.print(drawn)


def _numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    return all(row[column][:1] in "-0123456789" for row in rows)


@contextmanager
def steps() -> Iterator[Step]:
    """A progress bar on a terminal, for one step after the other; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield unwatched
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Bars(*columns, console=console, transient=True) as bars:

        def step(name: str) -> Progress:
            # Steps follow one another: a new one means that the one before is over.
            for finished in bars.task_ids:
                bars.remove_task(finished)
            task = bars.add_task(name, total=None, note="")

            def progress(done: int, total: int, note: str = "") -> None:
                bars.update(task, completed=done, total=total, note=note)

            return progress

        yield step
