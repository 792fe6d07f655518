"""The front by hand, and a picture drawn from a record alone."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from toolchain.errors import UsageError
from toolchain.pareto_plot import Point, draw, front, points_of

FAST, GOOD, BETWEEN, WORSE = Point("int8", 1, 80), Point("fp32", 4, 90), Point("fp16", 2, 89), Point("bad", 3, 85)


def test_the_front_is_what_nothing_beats_in_both() -> None:
    assert front([GOOD, WORSE, FAST, BETWEEN]) == (FAST, BETWEEN, GOOD)


def test_of_equal_latencies_the_more_accurate_is_kept_and_of_equal_accuracies_the_faster() -> None:
    assert front([Point("a", 1, 80), Point("b", 1, 81), Point("c", 2, 81)]) == (Point("b", 1, 81),)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_by_definition(places: list[tuple[int, int]]) -> None:
    points = [Point(str(k), *place) for k, place in enumerate(places)]
    found = {(p.milliseconds, p.accuracy) for p in front(points)}

    def beaten(point: Point) -> bool:
        return any(
            o.milliseconds <= point.milliseconds
            and o.accuracy >= point.accuracy
            and (o.milliseconds, o.accuracy) != (point.milliseconds, point.accuracy)
            for o in points
        )

    assert found == {(p.milliseconds, p.accuracy) for p in points if not beaten(p)}


def measured(median: float, *snr: float | None, problems: tuple[str, ...] = ()) -> dict[str, Any]:
    agreement = {f"output {k}": {"snr_db": db} for k, db in enumerate(snr)}
    return {"timings": {"median": median}, "agreement": agreement, "problems": problems}


def record(accuracy: dict[str, float] | None = None) -> dict[str, Any]:
    row = {"fp32": measured(4, None, None), "int8": measured(1, 30.0, 24.0), "dead": measured(0.1, problems=("is 0",))}
    return {
        "latency": {"batches": {"1": row, "8": row}},
        "accuracy": {name: {"evaluation": {"top1_loc": value}} for name, value in (accuracy or {}).items()},
    }


def test_without_data_the_worst_snr_stands_for_accuracy() -> None:
    title, points = points_of(record(), "1")
    assert "SNR" in title
    # What equals the reference is drawn above the best of the others.
    assert points == (Point("fp32", 4, 30.0), Point("int8", 1, 24.0))


def test_with_data_it_is_top1_loc() -> None:
    title, points = points_of(record({"fp32": 90.0, "int8": 88.0}), "8")
    assert title == "Top-1 Loc, %"
    assert points == (Point("fp32", 4, 90.0), Point("int8", 1, 88.0))


def test_the_picture_has_a_panel_for_each_batch_size(tmp_path: Path) -> None:
    draw(record(), tmp_path / "two.png")
    one = record()
    del one["latency"]["batches"]["8"]
    draw(one, tmp_path / "one.png")
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "one.png") as single:
        assert two.width == 2 * single.width


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not end in \.png"):
        draw(record(), tmp_path / "plot.svg")
