"""The report of a deployment: one HTML file that needs nothing else. Made from findings; nothing is measured here."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from engines.inspection import COMPILED, RAN, Inspection, inspection_from_dict
from engines.products import CONVOLUTION, LINEAR
from toolchain.artifacts import Artifact, writing
from toolchain.boxes import IOU_NEEDED, iou
from toolchain.errors import ArtifactError
from toolchain.findings import Arm, Example, Findings
from toolchain.overlay import BoxName, boxed, enlarged, heat, png_bytes
from toolchain.preprocessing import Box
from toolchain.range_table import OTHERS, range_rows, range_words

MAX_DROP = 0.5
"""Points that INT8 may lose of either localization metric."""
EVEN = 0.02
"""Latencies closer than this share are called equal."""
SHARP = 224
"""Example images smaller than this are enlarged before boxes are drawn, so that lines stay fine."""
TYPES = ("int8", "fp16", "bf16", "fp32", "unknown")
TITLES = {"tensorrt-rtx": "TensorRT-RTX", "tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime"}
DASH, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Claim:
    """One thing the report says first.

    Attributes:
        short: a clause for the headline.
        text: the sentence with its numbers.
        holds: whether it is what one hopes for; None where it is not known or nothing to hold.
    """

    short: str
    text: str
    holds: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether INT8 is worth it: accuracy against the bound, speed against FP32, and what was compiled."""

    accuracy: Claim
    speed: Claim
    compiled: tuple[Claim, ...]

    @property
    def holds(self) -> bool:
        """INT8 keeps the accuracy and is faster, and both are known."""
        return self.accuracy.holds is True and self.speed.holds is True

    @property
    def headline(self) -> str:
        """Accuracy and speed in one clause each."""
        if self.accuracy.holds is None or self.speed.holds is None:
            return f"{self.accuracy.short}; {self.speed.short}"
        join = "and" if self.accuracy.holds == self.speed.holds else "but"
        return f"{self.accuracy.short}{',' if join == 'but' else ''} {join} {self.speed.short}"


@dataclass(frozen=True)
class LatencyRow:
    """One session at one batch size; `speed` is how many times as fast as the baseline, with its 95 % interval."""

    batch: int
    name: str
    baseline: bool
    timings: Mapping[str, Any]
    images_per_second: float
    speed: tuple[float, float, float]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, what it shows for those who cannot see it, and its caption.

    Attributes:
        right: whether class and box are right; None for the truth.
    """

    uri: str
    alt: str
    title: str
    class_name: str
    right: tuple[bool, bool] | None = None
    overlap: float | None = None


def report_from_findings(findings: Findings, output: Path) -> None:
    """Write the report.

    Raises:
        ArtifactError: what was compiled is recorded unreadably, or the report cannot be written.
    """
    html = _environment().get_template("report.html.j2").render(_view(findings))
    with writing(output) as temporary:
        temporary.write_text(html, encoding="utf-8")


def verdict(findings: Findings, max_drop: float = MAX_DROP) -> Verdict:
    """What the numbers say, in sentences.

    Args:
        findings: the first arm is the reference, the second the one judged.
        max_drop: points that may be lost of either localization metric.
    """
    inspections = _inspections(findings)
    compiled = {name: found for name, found in inspections.items() if found.evidence == COMPILED}
    return Verdict(
        accuracy=_accuracy(findings.arms, max_drop),
        speed=_speed(latency_rows(findings.latency), _place(inspections.values())),
        compiled=tuple(
            _compiled(name if len(compiled) > 1 else "", found, findings.not_run) for name, found in compiled.items()
        ),
    )


def latency_rows(latency: Mapping[str, Any]) -> tuple[LatencyRow, ...]:
    """The rows of a benchmark by batch size; none where nothing was measured."""
    return tuple(
        LatencyRow(
            batch=int(size),
            name=name,
            baseline=name == latency["baseline"],
            timings=found["timings"],
            images_per_second=found["images_per_second"],
            speed=(1 / found["ratio"]["value"], 1 / found["ratio"]["high"], 1 / found["ratio"]["low"]),
            problems=tuple(found["problems"]),
        )
        for size, row in sorted(latency.get("batches", {}).items(), key=lambda item: int(item[0]))
        for name, found in row.items()
    )


def _accuracy(arms: tuple[Arm, ...], max_drop: float) -> Claim:
    if len(arms) < 2:
        return Claim("INT8's accuracy was not measured", "INT8's accuracy was not measured.")
    reference, judged = arms[0].evaluation, arms[1].evaluation
    drops = {
        "GT-Known Loc": reference.gt_known_loc - judged.gt_known_loc,
        "Top-1 Loc": reference.top1_loc - judged.top1_loc,
    }
    # A figure that is not a number must not pass: every drop has to be seen under the bound.
    holds = all(drop <= max_drop + 1e-9 for drop in drops.values())
    changes = " and ".join(_change(drop, metric) for metric, drop in drops.items())
    known = all(math.isfinite(drop) for drop in drops.values())
    bound = f"{'within' if holds else 'over' if known else 'not shown to be within'} the bound of {max_drop:g}"
    calibration = f", calibrated on {arms[1].calibration}," if arms[1].calibration else ""
    return Claim(
        "INT8 keeps the accuracy" if holds else "INT8 loses too much accuracy",
        f"INT8{calibration} {changes} against {arms[0].name} on {judged.images:,} held-out images: {bound}.",
        holds,
    )


def _change(drop: float, metric: str) -> str:
    if not math.isfinite(drop):
        return f"has no figure of {metric}"
    if round(drop, 2) == 0:
        return f"loses none of {metric}"
    return f"{'gains' if drop < 0 else 'loses'} {abs(drop):.2f} points of {metric}"


def _speed(rows: tuple[LatencyRow, ...], place: str) -> Claim:
    baseline = next((r.name for r in rows if r.baseline), "")
    judged = next((r.name for r in rows if not r.baseline), "")
    mine = [r for r in rows if r.name == judged]
    if not mine:
        return Claim("its speed was not measured", "INT8's speed was not measured.")
    if broken := [p for r in mine for p in r.problems]:
        return Claim("its outputs are broken", f"{judged} returns broken outputs: {broken[0]}.", False)
    faster = [r.speed[0] > 1 + EVEN for r in mine]
    phrases = ", and ".join(_pace(r, baseline) for r in mine)
    short = "runs faster here" if all(faster) else "does not run faster here"
    if any(faster) and not all(faster):
        short = "runs faster at some batch sizes only"
    return Claim(short, f"{judged} {phrases}, {place}.", all(faster))


def _pace(row: LatencyRow, baseline: str) -> str:
    value, low, high = row.speed
    spread = f"{low:.2f} to {high:.2f} at 95 %"
    sure = ", so not beyond noise" if low <= 1 <= high else ""
    if value > 1 + EVEN:
        return f"runs {value:.2f}{TIMES} as fast as {baseline} at batch {row.batch} ({spread}{sure})"
    if value < 1 / (1 + EVEN):
        return f"is slower than {baseline} at batch {row.batch}: {value:.2f}{TIMES} its speed ({spread}{sure})"
    return f"is as fast as {baseline} at batch {row.batch} ({value:.2f}{TIMES}, {spread})"


def _place(inspections: Iterable[Inspection]) -> str:
    backend = next((i.backend for i in inspections if i.evidence == RAN), "")
    return f"in {TITLES.get(backend, backend)} on this machine's CPU" if backend else "on this machine"


def _compiled(name: str, found: Inspection, not_run: str) -> Claim:
    products = [p for p in found.products if p.kind in (LINEAR, CONVOLUTION)]
    int8 = sum(p.type == "int8" for p in products)
    unknown = sum(p.type == "unknown" for p in products)
    what = f"{TITLES.get(found.backend, found.backend)} engine{f' {name}' if name else ''}"
    rest = f" ({unknown} unknown)" if unknown else ""
    totals = found.totals
    attention = f", {totals['attention_fused']} of {totals['attention_possible']} attention fused"
    count = f"{int8} of {len(products)} linears and convolutions INT8{rest}{attention if found.attention else ''}"
    ending = f"; not run: {_clause(not_run)}." if not_run else "."
    return Claim(f"{int8} of {len(products)} INT8", f"{what}: compiled ahead of time, {count}{ending}")


def _clause(sentence: str) -> str:
    return sentence.strip().rstrip(".")


def _inspections(findings: Findings) -> dict[str, Inspection]:
    return {name: inspection_from_dict(record) for name, record in findings.inspections.items()}


def _view(findings: Findings) -> dict[str, Any]:
    inspections = _inspections(findings)
    made = next((a for a in findings.artifacts if a.path == findings.synthetic), None)
    return {
        "findings": findings,
        "verdict": verdict(findings),
        "max_drop": MAX_DROP,
        "reference": findings.arms[0] if findings.arms else None,
        "latency": latency_rows(findings.latency),
        "inspections": inspections,
        "types": TYPES,
        "unrun": [(n, TITLES.get(i.backend, i.backend)) for n, i in inspections.items() if i.evidence == COMPILED],
        "not_run": _clause(findings.not_run),
        "ranges": _ranges(findings.artifacts),
        "examples": [(example, _pictures(example)) for example in findings.examples],
        "made": made,
        "preview": _embedded(findings.preview),
        "losses": _embedded(findings.losses),
        "names": {a.sha256: a.path.name for a in findings.artifacts},
        "versions": _distinct(a.versions for a in findings.artifacts),
        "machine": _distinct(a.machine for a in findings.artifacts),
    }


def _ranges(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """The ranges of the judged model, which is the first quantized one, against those of the other calibrations."""
    judged = next((a for a in artifacts if "ranges" in a.metadata), None)
    if judged is None:
        return {"words": "", "rows": (), "others": ()}
    rows = range_rows(judged, artifacts)
    others = [words for words in OTHERS.values() if any(words in row.ratios for row in rows)]
    return {"words": range_words(judged.metadata["ranges"]), "rows": rows, "others": others}


def _pictures(example: Example) -> list[Picture]:
    """The image with the true box, then each model's map with both boxes."""
    factor = -(-SHARP // min(example.image.shape[:2]))
    image = enlarged(example.image, factor)
    true_class, true_box = example.truth
    truth = boxed(image, {"truth": _scaled(true_box, factor)})
    shown = [
        Picture(
            _data_uri(png_bytes(truth)), f"{example.name} with the true box around {true_class}", "Truth", true_class
        )
    ]
    names: tuple[BoxName, ...] = ("fp32", "int8")
    for name, (class_name, box, map_) in zip(names, (example.fp32, example.int8), strict=True):
        title, overlap = name.upper(), iou(box, true_box)
        pixels = boxed(heat(image, map_), {"truth": _scaled(true_box, factor), name: _scaled(box, factor)})
        alt = f"{example.name}: {title} map, true box and the box of {title}, which overlap by {overlap:.2f}"
        right = (class_name == true_class, overlap >= IOU_NEEDED)
        shown.append(Picture(_data_uri(png_bytes(pixels)), alt, title, class_name, right, overlap))
    return shown


def _scaled(box: Box, factor: int) -> Box:
    return box[0] * factor, box[1] * factor, box[2] * factor, box[3] * factor


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _embedded(path: Path) -> str | None:
    """A PNG file as a data URI; None where there is none, which the report says."""
    if not path.is_file():
        return None
    try:
        return _data_uri(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}): run the deployment again.") from error


def _distinct(records: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Key -> every value it has among the records: artifacts that were reused may be older than the rest."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for key, value in record.items():
            found.setdefault(key, {})[value] = None
    return {key: ", ".join(values) for key, values in found.items()}


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("toolchain"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "signed": _signed, "size": _size}
    return environment


def _figure(value: float, digits: int = 2) -> str:
    """A number; a dash for one that is none, infinity for outputs that are equal."""
    if math.isnan(value):
        return DASH
    return f"{value:,.{digits}f}" if math.isfinite(value) else "\N{INFINITY}"


def _signed(value: float) -> str:
    """A change in points, with its sign."""
    if not math.isfinite(value):
        return DASH
    rounded = round(value, 2)
    return f"{'+' if rounded > 0 else MINUS if rounded < 0 else ''}{abs(rounded):.2f}"


def _size(count: int) -> str:
    """Bytes in the unit that reads best."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
