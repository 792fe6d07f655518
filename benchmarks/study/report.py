"""The study in Markdown, from its record alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from record import markdown

from study.arms import REAL
from study.summary import DECIDING, Runs, arms_of, deciding, figure, of_arm, range_ratios, spread

LOCALIZER_COLUMNS = {
    "logits SNR dB": ("logits_snr_db", 1),
    "map SNR dB": ("map_snr_db", 1),
    "same box %": ("box_agreement", 1),
    "IoU with FP32's box %": ("box_iou", 1),
    "Top-1": ("top1", 2),
    "GT-Known Loc": ("gt_known_loc", 2),
}
BATCHNORM_COLUMNS = {"same Top-1 as FP32 %": ("top1_agreement", 1), "logits SNR dB": ("logits_snr_db", 1)}
README_COLUMNS = {"logits SNR": ("logits_snr_db", 1), "GT-Known Loc": ("gt_known_loc", 2)}
README_WIDTHS = ("W8A8", "W6A6")
RATIO = "range over real's: median (least to largest tensor)"


def report(record: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The whole document; `pictures` are the files of the plots beside it."""
    parts = ["# What calibration images are worth", _preamble(record)]
    parts += [f"![{name.partition('.')[0]}]({name})" for name in pictures]
    parts += [_localizer(localizer) for localizer in record.get("localizers", ())]
    if "batchnorm" in record:
        parts.append(_batchnorm(record["batchnorm"]))
    if "fine-tuning" in record:
        parts.append(_tuning(record["fine-tuning"]))
    if "speed" in record:
        parts.append(_speed(record["speed"]))
    parts.append("## Bounds\n\n" + _verdicts(record["verdicts"]))
    parts.append("## For the README\n\n" + readme(record))
    return "\n\n".join(parts) + "\n"


def readme(record: Mapping[str, Any]) -> str:
    """Its two tables: localizers, and networks with BatchNorm."""
    tables = []
    localizers = record.get("localizers", ())
    if localizers:
        columns = [f"{each['name']}, {w}: {c}" for each in localizers for w in README_WIDTHS for c in README_COLUMNS]
        rows = []
        for arm in arms_of(localizers[0]["runs"]):
            cells = (_cells(each["runs"], arm, w, README_COLUMNS) for each in localizers for w in README_WIDTHS)
            rows.append([arm, *(cell for some in cells for cell in some)])
        tables.append(markdown(["mean ± deviation over seeds", *columns], rows))
    if "fine-tuning" in record or "batchnorm" in record:
        tables.append(_readme_batchnorm(record))
    return "\n\n".join(tables)


def _readme_batchnorm(record: Mapping[str, Any]) -> str:
    rows = []
    if "batchnorm" in record:
        name, runs = record["batchnorm"]["name"], record["batchnorm"]["runs"]
        for arm in arms_of(runs):
            for width in runs[0]["widths"]:
                same = figure(runs, arm, width, "top1_agreement").text(1)
                rows.append([f"{name}, {width}, {arm}", f"{same} % as FP32"])
    if "fine-tuning" in record:
        tuning = record["fine-tuning"]
        width = f"{tuning['name']}, W{tuning['bits']}A{tuning['bits']}"
        rows.append([f"{tuning['name']}, FP32", f"{tuning['fp32']['top1']:.2f}"])
        rows += [[f"{width}, {arm}", _top1(tuning["runs"], arm)] for arm in arms_of(tuning["runs"])]
    return markdown(["networks with BatchNorm", "Top-1"], rows)


def _preamble(record: Mapping[str, Any]) -> str:
    lines = [
        f"Made by `python benchmarks/calibration_study.py` (the {record['plan']} study, {record['device']}); every "
        "figure and setting is in the record beside this file. Figures are means over the seeds with their sample "
        "standard deviation. Each arm goes through the same calibrator, `lctr quantize`'s default. W8A6 and W6A6 keep "
        "the first and the last product and the image at 8 bits.",
    ]
    lines += [f"- Left out: {reason}" for reason in record["missing"]]
    versions = record["code"]
    if len(set(versions.values())) > 1:
        told = ", ".join(f"{part} {version}" for part, version in versions.items())
        lines.append(f"- Parts were measured with different versions of the code: {told}.")
    return "\n".join(lines)


def _localizer(localizer: Mapping[str, Any]) -> str:
    """A localizer's tables: arms at each width, their ranges, and those that decide on the more images that do."""
    reference = localizer["fp32"]
    tables = _by_width(
        localizer,
        LOCALIZER_COLUMNS,
        f"## {localizer['name']} ({localizer['model']})",
        f"FP32: Top-1 {reference['top1']:.2f}, GT-Known Loc {reference['gt_known_loc']:.2f} on "
        f"{localizer['test_images']} held-out images. Seeds: {_seeds(localizer['runs'])}.",
    )
    runs = [run for run in localizer["runs"] if DECIDING in run]
    if not runs:
        return tables
    columns = LOCALIZER_COLUMNS.items()
    rows = [[arm, *(deciding(runs, arm, m).text(digits) for _, (m, digits) in columns)] for arm in arms_of(runs)]
    opening = f"### W8A8 on {localizer['deciding_images']} held-out images, by which the bound is judged"
    return "\n\n".join([tables, opening, markdown(["", *LOCALIZER_COLUMNS], rows)])


def _batchnorm(subject: Mapping[str, Any]) -> str:
    return _by_width(
        subject,
        BATCHNORM_COLUMNS,
        f"## {subject['name']}, ImageNet's weights",
        f"On {subject['test_images']} photographs of other classes: agreement with FP32 is what there is to see. "
        f"Seeds: {_seeds(subject['runs'])}.",
    )


def _by_width(subject: Mapping[str, Any], columns: Mapping[str, tuple[str, int]], *opening: str) -> str:
    """A table for each width, a row for each arm; and the ranges."""
    runs, parts = subject["runs"], [*opening]
    for width in runs[0]["widths"]:
        rows = [[arm, _much(subject, arm), *_cells(runs, arm, width, columns)] for arm in arms_of(runs)]
        parts.append(f"### {width}\n\n" + markdown(["", "images", *columns], rows))
    return "\n\n".join([*parts, _ratios(runs)])


def _tuning(tuning: Mapping[str, Any]) -> str:
    runs, chosen = tuning["runs"], tuning["learning_rate"]
    rows = [["FP32", "", "", f"{tuning['fp32']['top1']:.2f}"]]
    for arm in arms_of(runs):
        agreement = spread([run["label_agreement"] for run in of_arm(runs, arm)]).text(1)
        rate = f"{chosen[arm]:g} ({_tried(tuning['validation_top1'][arm])})" if arm in chosen else "not tuned"
        rows.append([arm, rate, agreement, _top1(runs, arm)])
    parts = [
        f"## {tuning['name']} at {tuning['bits']} bits in every layer, fine-tuned",
        f"Trained here on `shapes` at half its size; {tuning['images']} images, {tuning['steps']} steps of the "
        f"generator and {tuning['epochs']} epochs in every arm, {tuning['test_images']} test images, seeds: "
        f"{_seeds(runs)}. Each arm has the learning rate that is best for it on validation images (mean Top-1 of the "
        f"first {tuning['choosing_seeds']} seeds in brackets). Ranges without fine-tuning are those of FDDA's images.",
        markdown(["", "learning rate", "images that FP32 takes for their class %", "Top-1"], rows),
    ]
    return "\n\n".join(parts)


def _tried(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{rate}: {top1:.2f}" for rate, top1 in rates.items())


def _speed(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = ["network", "method", "pixels", "steps", "images", "seconds", "images/s"]
    cells = [
        [
            *(str(row[key]) for key in ("network", "method", "pixels", "steps", "images")),
            f"{row['seconds']:.1f}",
            f"{row['images_per_s']:.2f}",
        ]
        for row in rows
    ]
    return "## Speed\n\nFrom the network and its statistics to the finished images.\n\n" + markdown(columns, cells)


def _verdicts(verdicts: Sequence[Mapping[str, Any]]) -> str:
    rows = [[verdict["of"], verdict["found"], "yes" if verdict["holds"] else "**no**"] for verdict in verdicts]
    return markdown(["bound", "found", "holds"], rows)


def _ratios(runs: Runs) -> str:
    rows = []
    for arm in (arm for arm in arms_of(runs) if arm != REAL):
        ratios = list(range_ratios(runs, arm).values())
        rows.append([arm, f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"])
    return markdown(["range of each quantized tensor", RATIO], rows)


def _much(subject: Mapping[str, Any], arm: str) -> str:
    """How many images, in how many steps."""
    runs = of_arm(subject["runs"], arm)
    steps = subject["steps"].get(arm)
    return f"{runs[0]['images']}" + (f", {steps} steps" if steps else "")


def _seeds(runs: Runs) -> int:
    return len({run["seed"] for run in runs})


def _cells(runs: Runs, arm: str, width: str, columns: Mapping[str, tuple[str, int]]) -> list[str]:
    return [figure(runs, arm, width, metric).text(digits) for metric, digits in columns.values()]


def _top1(runs: Runs, arm: str) -> str:
    return spread([run["top1"] for run in of_arm(runs, arm)]).text(2)
