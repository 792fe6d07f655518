"""A benchmark's record as rows of text; `toolchain.commands.terminal` draws them. What is not known is a dash."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from engines.timing import TRTEXEC_NAMES

UNKNOWN = "-"
FIGURES = ("min", "max", "mean", "median", "p90", "p95", "p99")


class Table(NamedTuple):
    """What `toolchain.commands.terminal.table` draws."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def comparison(latency: Mapping[str, Any]) -> Table:
    """`Benchmark.as_dict`, one line for each batch size and file: what it takes and how far its outputs are."""
    rows = []
    for size, name, found in _measurements(latency):
        timings = found["timings"]
        figures = [f"{timings[key]:.2f}" for key in ("median", "p95", "p99")]
        baseline = name == latency["baseline"]
        output, agreement = _shown(found["agreement"])
        snr = "equal" if agreement.get("equal") else _text(agreement.get("snr_db"), "{:.1f} dB")
        rows.append(
            [
                *(size, name, *figures, f"{found['images_per_second']:.1f}"),
                "" if baseline else _ratio(found["ratio"]),
                "" if baseline else f"{output} {snr}".strip(),
                "" if baseline else _text(agreement.get("cosine"), "{:.4f}"),
                "; ".join(found["problems"]),
            ]
        )
    times = f"time / {latency['baseline']}"
    columns = ["batch", "file", "median ms", "p95", "p99", "images/s", times, "SNR", "cosine", "problems"]
    used = [k for k in range(len(columns)) if k < 6 or any(row[k] for row in rows)]
    return Table("", [columns[k] for k in used], [[row[k] for k in used] for row in rows])


def figures(latency: Mapping[str, Any]) -> Table:
    """Every time that a session tells apart, by trtexec's names, and throughput over the rounds."""
    known = {phase for _, _, found in _measurements(latency) for phase in found["timings"]["phases"]}
    rows = []
    for size, name, found in _measurements(latency):
        timings = found["timings"]
        rows.append([size, name, "Latency, ms", *_figures(timings)])
        for phase, title in TRTEXEC_NAMES.items():
            if phase in known:
                rows.append([size, name, f"{title}, ms", *_figures(timings["phases"].get(phase))])
        rows.append([size, name, "Throughput, images/s", *_figures(found["throughput"])])
    return Table("", ["batch", "file", "", *FIGURES, "CV", "n"], rows)


def settings(latency: Mapping[str, Any]) -> Table:
    """What held while it was measured."""
    asked = latency["settings"]
    warm_up = f"{asked['warmup_ms']:g} ms" if asked["warmup_ms"] else f"{asked['warmup']} calls"
    measured = list(_measurements(latency))
    names = list(dict.fromkeys(name for _, _, found in measured for name in found["timings"]["settings"]))
    rows = [
        [
            *(size, name, found["timings"]["clock"], f"{asked['rounds']} x {found['iterations']}", warm_up),
            f"{found['first_call_ms']:.1f}",
            *(_setting(found["timings"]["settings"].get(key)) for key in names),
        ]
        for size, name, found in measured
    ]
    return Table(
        "", ["batch", "file", "clock", "calls", "warm-up", "first call ms", *(n.replace("_", " ") for n in names)], rows
    )


def gpu(latency: Mapping[str, Any]) -> Table:
    """What NVML counted; no row where it counted nothing."""
    rows = []
    for size, name, found in _measurements(latency):
        seen = found["gpu"]
        if not seen:
            continue
        energy = seen.get("joules_per_image")
        rows.append(
            [
                *(size, name, _span(seen.get("sm_mhz")), _span(seen.get("memory_mhz")), _span(seen.get("celsius"))),
                _text(seen.get("watts", {}).get("mean"), "{:.1f}"),
                _text(energy and 1000 * energy["value"], "{:.3g}"),
                ", ".join(seen["throttled"]) or "no",
            ]
        )
    columns = ["batch", "file", "SM MHz", "memory MHz", "deg C", "W", "mJ/image", "throttled"]
    return Table(latency["gpu"], columns, rows)


def _measurements(latency: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for size, row in latency["batches"].items():
        for name, found in row.items():
            yield size, name, found


def _ratio(ratio: Mapping[str, Any]) -> str:
    if ratio["low"] is None:
        return f"{ratio['value']:.2f}, noise unknown"
    told = f"{ratio['value']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
    return f"{told}, no difference beyond noise" if ratio["low"] <= 1 <= ratio["high"] else told


def _shown(agreement: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The logits of a localizer, else the first output that can be compared."""
    name = "logits" if "logits" in agreement else next(iter(agreement), "")
    return name, agreement.get(name, {})


def _figures(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return [UNKNOWN] * (len(FIGURES) + 2)
    return [*(f"{found[key]:.4g}" for key in FIGURES), f"{100 * found['cv']:.1f} %", f"{found['n']:,}"]


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return UNKNOWN if value is None else str(value)


def _span(found: Mapping[str, float] | None) -> str:
    if found is None:
        return UNKNOWN
    low, high = f"{found['min']:.0f}", f"{found['max']:.0f}"
    return low if low == high else f"{low}-{high}"


def _text(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)
