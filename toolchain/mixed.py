"""`lctr quantize --precision auto`: INT8 wherever the bound allows it, found by measurements (`toolchain.sensitivity`).

It starts from the model in which everything is quantized, and takes its ranges: nothing is observed twice. Every set is
built as the final model is, and run in ONNX Runtime on the same images; the final file is measured once more as it
stands on disk.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calib import ranges
from exporters.files import metadata_of, read_onnx
from exporters.placement import Placement
from exporters.qdq import graph_hash
from toolchain import sensitivity_plot
from toolchain.artifacts import Made, code_version, load, machine, reusable, seal, versions, writing
from toolchain.calibration import CalibrationSource
from toolchain.card import card_from_metadata
from toolchain.data.sources import files_of
from toolchain.errors import GateFailed, ModelError, UsageError
from toolchain.ledger import Ledger
from toolchain.probe import Probe, ProbeImages, Quality, db_from_noise, images_from_data, images_from_source
from toolchain.progress import Step, unwatched
from toolchain.quantization import ONNX_INT8, equalized_of, facts_from_quantized, placement_of, ranges_of
from toolchain.search import Search
from toolchain.sensitivity import Bound, Found, Left, Ranked, Spent, most, needed, ranking, smallest_set
from toolchain.trials import Mixtures, Trials
from toolchain.units import BLOCK, NODE, units_of

CODE = (
    *("exporters", "engines", "toolchain/mixed.py", "toolchain/sensitivity.py", "toolchain/probe.py"),
    *(
        "toolchain/trials.py",
        "toolchain/units.py",
        "toolchain/evaluation.py",
        "toolchain/curve.py",
        "toolchain/protocols.py",
    ),
    *("toolchain/boxes.py", "toolchain/localizer.py", "toolchain/data", "toolchain/preprocessing.py"),
)
"""The source that an evaluation depends on."""


def ledger_of(output: Path) -> Path:
    """Where every measured number of a search stands."""
    return output.with_name(f"{output.stem}.sensitivity.json")


def plot_of(output: Path) -> Path:
    """Where the ranking is drawn."""
    return output.with_name(f"{output.stem}.sensitivity.png")


def everything_of(output: Path) -> Path:
    """Where the model in which everything is quantized stands, beside the one of the search."""
    return output.with_suffix(".int8.onnx")


def summary(record: Mapping[str, Any]) -> str:
    """What a finished search came to, in sentences.

    Args:
        record: `sensitivity` of the sidecar.
    """
    result, left = record["result"], record["result"]["left_float"]
    count = f"{len(left)} of {len(record['ranking'])} {record['by']}s"
    if not left:
        kept = "Nothing has to stay float"
    else:
        kept = f"{count} {'stays' if len(left) == 1 else 'stay'} float: {', '.join(left)}"
    if left and not result["irreducible"]:
        kept += " (the evaluations ran out before every one of them was tried in INT8)"
    reference = record["float"]
    snr = f"logits {db_from_noise(result['logits_noise']):.1f} dB, map {db_from_noise(result['map_noise']):.1f} dB"
    if reference is None:
        return f"{kept}. Measured on the file, {record['images']}: {snr}."
    figures = ", ".join(
        f"{title} {reference[key]:.2f} -> {result[key]:.2f}"
        for key, title in (("gt_known_loc", "GT-Known Loc"), ("top1_loc", "Top-1 Loc"))
    )
    return f"{kept}. Measured on the file, {record['images']}: {figures}; {snr}."


def mixed_onnx(
    model: Path,
    everything: Path,
    output: Path,
    source: CalibrationSource,
    search: Search,
    *,
    announce: Callable[[str], None] = lambda sentence: None,
    step: Step = unwatched,
) -> Made:
    """INT8 but for the smallest set of units found with which the bound holds; measured on the file itself.

    Args:
        model: float ONNX file.
        everything: the same with everything quantized, of `quantization.int8_onnx`; its ranges stand beside it.
        output: ONNX file to write; ranges, evaluations and the ranking's plot stand beside it.
        source: the calibration images; judged on where no data was named.
        search: see there.
        announce: told what the search costs, before it begins and when it is known how long it takes.
        step: where progress goes.

    Raises:
        GateFailed: no quantized model meets the bound; evaluations and plot are written all the same.
        UsageError: too few evaluations allowed, or the images have no boxes.
        LctrError: a file cannot be used.
    """
    graph = read_onnx(model)
    card = card_from_metadata(metadata_of(graph), str(model))
    judged = files_of(search.data, card.preprocessing) if search.data else source.inputs
    parameters = {**asdict(search), **({} if search.data else source.parameters)}
    inputs = {"model": model, "int8": everything, **judged}
    code = code_version(*CODE)
    there = reusable(output, ONNX_INT8, parameters=parameters, inputs=inputs, code=code)
    if there and ledger_of(output).exists() and plot_of(output).exists():
        return Made(there, True)
    whole = load(everything, ONNX_INT8)
    known = ranges.load(ranges_of(everything), graph=graph_hash(graph))
    graph, _ = equalized_of(graph, known.exponents)
    placement = placement_of(graph, tuple(whole.parameters["keep_float"]), whole.parameters["attention"])
    units = units_of(placement, search.by)
    limit = _limit(search, len(units))
    if search.data:
        images = images_from_data(search.data, card, search.images)
    else:
        images = images_from_source(source, card, search.images)
    ledger = Ledger(ledger_of(output), _key(known, placement, images, card.tau, code), list(units))
    announce(_cost(search, len(units), limit, images, ledger))
    mixtures = Mixtures(graph, placement, units, known.amax, f"left float to hold {search.bound.text}")
    with writing(output) as temporary:
        probe = Probe(images, model, card.tau)
        trials = Trials(mixtures, probe, ledger, limit, temporary, announce, step("evaluations"))
        ranked = ranking(list(units), trials.measure, 100 / len(images))
        facts = _facts(search, images, probe, ranked)
        ledger.conclude(facts)
        sensitivity_plot.draw(facts, plot_of(output))
        found, quality = _settled(trials, ranked, search.bound, model)
        _, done = mixtures.build(frozenset(found.left))
    result = {"left_float": list(found.left), "irreducible": found.irreducible, **asdict(quality)}
    ledger.conclude({**facts, "result": result})
    ranges.save(known, ranges_of(output))
    summary = {**facts, "result": result, "evaluations": len(ledger)}
    metadata = {**whole.metadata, **facts_from_quantized(done, known), "sensitivity": summary}
    return Made(seal(output, ONNX_INT8, parameters=parameters, inputs=inputs, metadata=metadata, code=code), False)


def _limit(search: Search, units: int) -> int:
    """Evaluations that are allowed; too few for a ranking and a set are refused before any is made."""
    if not units:
        raise ModelError("The model has no product to quantize, so none to choose from: leave --precision auto out.")
    allowed = search.max_evaluations
    if allowed is not None and allowed < needed(units):
        coarser = f", use --by {BLOCK}" if search.by == NODE else ""
        raise UsageError(
            f"--max-evaluations {allowed} is too few for {units} {search.by}s: give at least {needed(units)}{coarser}, "
            "or leave it out."
        )
    return min(allowed or most(units), most(units))


def _cost(search: Search, units: int, limit: int, images: ProbeImages, ledger: Ledger) -> str:
    kept = f" ({len(ledger)} kept from before)" if len(ledger) else ""
    anew = f" The evaluations in {ledger.path.name} are of other parts: begun anew." if ledger.outdated else ""
    return f"{units} {search.by}s: at most {limit} evaluations{kept} on {images.description}.{anew}"


def _key(
    known: ranges.Ranges, placement: Placement, images: ProbeImages, tau: float, code: str
) -> dict[str, str | float | dict[str, str]]:
    """Everything that an evaluation depends on, other than which units are float."""
    return {
        "graph": known.graph,
        "ranges": _hash(known.amax),
        "products": _hash([site.output for site in placement.sites]),
        "images": images.fingerprint,
        "tau": tau,
        "code": code,
        "versions": versions(),
        "cpu": machine()["cpu"],
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _facts(search: Search, images: ProbeImages, probe: Probe, ranked: Sequence[Ranked]) -> dict[str, Any]:
    """The ranking, for the record and the plot; `result` follows when it is known."""
    found = probe.evaluation
    reference = {"gt_known_loc": found.gt_known_loc, "top1_loc": found.top1_loc} if found else None
    return {
        "bound": asdict(search.bound),
        "by": search.by,
        "images": images.description,
        "float": reference,
        "ranking": [asdict(unit) for unit in ranked],
        "result": None,
    }


def _settled(trials: Trials, ranked: Sequence[Ranked], bound: Bound, model: Path) -> tuple[Found, Quality]:
    """The smallest set found whose graph, as written to its place, holds the bound when it is measured there."""
    units = [unit.unit for unit in ranked]

    def holds(left: Left) -> bool:
        # With all of them it is the float graph.
        return len(left) == len(units) or bound.holds(trials.measure(left))

    while True:
        try:
            found = smallest_set(units, holds)
        except Spent:
            raise GateFailed(
                f"The evaluations are used up, and no INT8 model of {model.name} was measured to hold {bound.text}: "
                "allow more with --max-evaluations."
            ) from None
        if len(found.left) == len(units):
            least = min(ranked, key=lambda unit: (unit.only_quantized.lost or 0.0, unit.only_quantized.noise))
            raise GateFailed(
                f"No INT8 model of {model.name} holds {bound.text}: with '{least.unit}' alone quantized it "
                f"{_said(least.only_quantized)}; relax the bound, calibrate on more images, or stay with the float "
                "model."
            )
        quality = trials.finish(frozenset(found.left))
        if bound.holds(quality):
            return found, quality


def _said(quality: Quality) -> str:
    if quality.lost is None:
        return f"reaches {quality.snr_db:.1f} dB"
    return f"loses {quality.lost:.2f} points"
