"""`lctr quantize --precision auto`: what it finds, what it says, and what it costs."""

import json
import math
from itertools import combinations
from pathlib import Path

import pytest
from deployment import lctr
from hypothesis import given
from hypothesis import strategies as st
from square_finder import PLANTED, PRODUCTS, finder, squares

from exporters.files import read_onnx
from toolchain import mixed, quantization, trials
from toolchain.artifacts import load, read_sidecar
from toolchain.errors import UsageError
from toolchain.probe import Quality
from toolchain.sensitivity import Bound, Left, Spent, most, ranking, smallest_set

NODES = most(len(PRODUCTS))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finder(tmp_path_factory.mktemp("model") / "finder.onnx")


def auto(model: Path, data: str, output: Path, *options: object):
    images = Path(data.removeprefix("folder:")) / "train"
    calibration = ("--images", images / "red", "--method", "max")
    return lctr("quantize", model, *calibration, "--precision", "auto", "-o", output, *options)


# The figure: one planted outlier channel.


def test_the_planted_node_is_found_and_the_accuracy_is_back(model: Path, data: str, tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    told = auto(model, data, output, "--data", data, "--json")
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout)
    found = record["sensitivity"]
    assert found["result"]["left_float"] == [PLANTED]
    assert found["result"]["lost"] <= 0.5
    assert record["left_float"][PLANTED] == "left float to hold --max-drop 0.5"
    assert set(record["quantized"]) == {*PRODUCTS} - {PLANTED}
    # The float graph is right on every image; with the planted node in INT8 alone no map says anything.
    assert found["float"] == {"gt_known_loc": 100.0, "top1_loc": 100.0}
    first = found["ranking"][0]
    assert (first["unit"], first["only_quantized"]["lost"], first["only_float"]["lost"]) == (PLANTED, 100.0, 0.0)
    assert all(unit["only_quantized"]["lost"] == 0 for unit in found["ranking"][1:])
    # What was said of the file holds for the file, by a command that knows nothing of the search.
    evaluated = json.loads(lctr("evaluate", output, "--data", data, "--split", "val", "--json").stdout)
    assert evaluated["gt_known_loc"] == found["result"]["gt_known_loc"]
    everything = json.loads(
        lctr("evaluate", mixed.everything_of(output), "--data", data, "--split", "val", "--json").stdout
    )
    assert everything["gt_known_loc"] == 0.0


def test_the_search_goes_on_with_the_equalized_graph(
    model: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "exponents_of", lambda linears, amax: (2, -1, 0))
    output = tmp_path / "q.onnx"
    record = json.loads(auto(model, data, output, "--data", data, "--json").stdout)
    assert record["sensitivity"]["result"]["left_float"] == [PLANTED]
    assert [each["how"] for each in record["equalized"]] == ["Mul pooled/equalize"]
    assert "pooled/equalize" in [node.name for node in read_onnx(output).graph.node]
    assert json.loads(quantization.ranges_of(output).read_text())["exponents"] == {"pooled": [2, -1, 0]}


def test_ranking_and_evaluations_stand_beside_the_result(model: Path, data: str, tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    told = auto(model, data, output, "--data", data)
    assert told.exit_code == 0, told.output
    assert f"1 of 5 nodes stays float: {PLANTED}. Measured on the file, 12 val images" in told.stdout
    assert f"5 nodes: at most {NODES} evaluations on 12 val images" in told.stderr
    assert " s an evaluation: at most " in told.stderr
    record = json.loads(mixed.ledger_of(output).read_text())
    ways = [(evaluation["only"], tuple(evaluation["units"])) for evaluation in record["evaluations"]]
    assert len(set(ways)) == len(ways) <= NODES
    assert {("quantized", (name,)) for name in PRODUCTS} | {("float", (name,)) for name in PRODUCTS} <= {*ways}
    assert mixed.plot_of(output).read_bytes().startswith(b"\x89PNG")
    artifact = load(output, "onnx-int8")
    assert artifact.metadata["sensitivity"]["result"] == record["result"]
    assert artifact.inputs["int8"]["sha256"] == read_sidecar(mixed.everything_of(output)).sha256
    again = auto(model, data, output, "--data", data)
    assert "reused" in again.stdout
    assert "evaluations" not in again.stderr


def test_a_model_that_holds_the_bound_is_quantized_throughout(data: str, tmp_path: Path) -> None:
    model = finder(tmp_path / "plain.onnx", outlier=1.0)
    record = json.loads(auto(model, data, tmp_path / "q.onnx", "--data", data, "--json").stdout)
    assert record["sensitivity"]["result"]["left_float"] == []
    assert set(record["quantized"]) == {*PRODUCTS}
    assert "Nothing has to stay float" in auto(model, data, tmp_path / "q.onnx", "--data", data).stdout


def test_blocks_are_left_whole(model: Path, data: str, tmp_path: Path) -> None:
    record = json.loads(auto(model, data, tmp_path / "q.onnx", "--data", data, "--by", "block", "--json").stdout)
    # stem.0 and stem.1 are two blocks; what has no number stands alone.
    assert record["sensitivity"]["result"]["left_float"] == ["stem.1"]
    assert {unit["unit"] for unit in record["sensitivity"]["ranking"]} == {
        *("stem.0", "stem.1", "blur/Conv", "where/Conv", "class/Gemm")
    }


# Without boxes.


def test_without_data_the_output_error_is_bounded(model: Path, data: str, tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    told = auto(model, data, output, "--min-snr", "25")
    assert told.exit_code == 0, told.output
    assert "calibration images" in told.stderr
    found = read_sidecar(output).metadata["sensitivity"]
    assert found["result"]["left_float"] == [PLANTED]
    assert found["result"]["lost"] is None
    assert max(found["result"]["logits_noise"], found["result"]["map_noise"]) <= 10**-2.5
    assert " dB" in told.stdout


def test_a_bound_that_nothing_meets_is_said_and_leaves_no_model(model: Path, data: str, tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    told = auto(model, data, output, "--min-snr", "400")
    assert told.exit_code == 3
    assert "No INT8 model of finder.onnx holds --min-snr 400: with '" in told.stderr
    assert not output.exists()
    # What was measured is worth keeping.
    assert json.loads(mixed.ledger_of(output).read_text())["result"] is None
    assert mixed.plot_of(output).exists()


# Killed at any moment.


def test_a_search_that_was_killed_goes_on(
    model: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole" / "q.onnx"
    auto(model, data, whole, "--data", data)
    output = tmp_path / "killed" / "q.onnx"
    built: list[Left] = []
    build = trials.Mixtures.build

    def counting(self, left: Left):
        built.append(left)
        if len(built) == 4:
            raise KeyboardInterrupt
        return build(self, left)

    monkeypatch.setattr(trials.Mixtures, "build", counting)
    assert auto(model, data, output, "--data", data).exit_code == 1
    assert not output.exists()
    assert not list(output.parent.glob(".*")), "nothing half done is left"
    told = auto(model, data, output, "--data", data)
    assert "(3 kept from before)" in told.stderr
    # Three sets were measured and the fourth begun; none of the three was built again.
    assert set(built[:3]).isdisjoint(built[4:])
    assert output.read_bytes() == whole.read_bytes()
    kept, uninterrupted = (json.loads(mixed.ledger_of(path).read_text()) for path in (output, whole))
    assert kept == uninterrupted


def test_evaluations_outlive_another_bound_and_no_other_images(model: Path, data: str, tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    auto(model, data, output, "--data", data)
    looser = auto(model, data, output, "--data", data, "--max-drop", "100")
    assert "kept from before" in looser.stderr
    assert "Nothing has to stay float" in looser.stdout
    fewer = auto(model, data, output, "--data", data, "--eval-images", "4")
    assert "are of other parts: begun anew" in fewer.stderr


def test_a_ledger_that_is_none_is_refused(model: Path, data: str, tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    mixed.ledger_of(output).write_text("[]")
    told = auto(model, data, output, "--data", data)
    assert told.exit_code == 1
    assert "q.sensitivity.json is no record of evaluations: remove it" in told.stderr


# Wrong usage.


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "--precision auto needs images with boxes"),
        (("--max-drop", "0.5"), "--max-drop is in points of localization, which needs images with boxes"),
        (("--data", "{data}", "--min-snr", "20"), "--data and --min-snr 20 contradict each other"),
        (("--max-drop", "1", "--min-snr", "20"), "give one bound"),
        (("--data", "{data}", "--max-drop", "-1"), "--max-drop -1 asks for a gain"),
        (("--data", "{data}", "--by", "layer"), "unknown --by 'layer'"),
        (("--data", "{data}", "--eval-images", "0"), "--eval-images 0 is too few"),
        (
            ("--data", "{data}", "--max-evaluations", "9"),
            "--max-evaluations 9 is too few for 5 nodes: give at least 17",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: tuple[str, ...], complaint: str, model: Path, data: str, tmp_path: Path
) -> None:
    told = auto(model, data, tmp_path / "q.onnx", *(option.format(data=data) for option in options))
    assert told.exit_code == 2
    assert complaint in told.stderr
    assert told.stderr.count("\n") == 1
    assert not (tmp_path / "q.onnx").exists()


def test_a_search_s_options_mean_nothing_without_it(model: Path, tmp_path: Path) -> None:
    told = lctr("quantize", model, "--images", "noise", "--max-drop", "1", "-o", tmp_path / "q.onnx")
    assert told.exit_code == 2
    assert "--max-drop is for --precision auto, which was not asked for" in told.stderr


def test_points_need_boxes(model: Path, data: str, tmp_path: Path) -> None:
    unboxed = squares(tmp_path / "unboxed", 1, boxes=False)
    told = auto(model, data, tmp_path / "q.onnx", "--data", unboxed)
    assert told.exit_code == 2
    assert f"the val images of {unboxed} have no boxes: leave --data out" in told.stderr


def test_images_that_tell_nothing_are_refused(model: Path, data: str, tmp_path: Path) -> None:
    # A graph of zeros says nothing about any image.
    silent = read_onnx(model)
    for initializer in silent.graph.initializer:
        if initializer.name == "mix_weight":
            initializer.raw_data = bytes(len(initializer.raw_data))
    (tmp_path / "silent.onnx").write_bytes(silent.SerializeToString())
    told = auto(tmp_path / "silent.onnx", data, tmp_path / "q.onnx", "--min-snr", "10")
    assert told.exit_code == 1
    assert "are constant on all of 6 calibration images" in told.stderr


# The search itself, on losses that add up, where the smallest set is known.

LOSSES = st.lists(st.integers(0, 20), min_size=1, max_size=7)


@given(LOSSES, st.integers(0, 60))
def test_the_set_is_the_smallest_there_is(losses: list[int], allowed: int) -> None:
    units = [str(k) for k in range(len(losses))]

    def loss(left: Left) -> int:
        return sum(value for unit, value in zip(units, losses, strict=True) if unit not in left)

    def measure(left: Left) -> Quality:
        return Quality(loss(left) / 1000, 0.0, lost=float(loss(left)))

    ranked = ranking(units, measure, one_image=1.0)
    assert [unit.points for unit in ranked] == [float(losses[int(unit.unit)]) for unit in ranked]
    found = smallest_set([unit.unit for unit in ranked], lambda left: loss(left) <= allowed)
    size = next(n for n in range(len(units) + 1) if any(loss(frozenset(s)) <= allowed for s in combinations(units, n)))
    assert (len(found.left), found.irreducible) == (size, True)
    assert loss(frozenset(found.left)) <= allowed


@given(st.permutations("abcdefg"), st.sets(st.frozensets(st.sampled_from("abcdefg"), max_size=6), max_size=30))
def test_whatever_is_measured_the_set_holds_and_costs_no_more_than_was_said(
    order: list[str], holding: set[Left]
) -> None:
    # No ranking, no adding up, not even monotone: the bound holds where it happens to.
    def holds(left: Left) -> bool:
        return len(left) == len(order) or left in holding

    asked: list[Left] = []

    def counted(left: Left) -> bool:
        asked.append(left)
        return holds(left)

    found = smallest_set(order, counted)
    assert holds(frozenset(found.left))
    # A ranking's evaluations, and those of the set, are no more than what was announced.
    assert 2 * len(order) + len(set(asked)) <= most(len(order))


def test_points_within_one_image_do_not_rank() -> None:
    # Of 10 images one is 10 points: `loud` has lost one by chance less than `noisy`, and is ten times as noisy.
    def measure(left: Left) -> Quality:
        lost = 0.0 if "noisy" in left else 10.0
        noise = 0.1 * ("loud" not in left) + 0.01 * ("noisy" not in left)
        return Quality(noise, 0.0, lost=lost)

    assert [unit.unit for unit in ranking(["noisy", "loud"], measure, one_image=10.0)] == ["loud", "noisy"]
    assert [unit.unit for unit in ranking(["noisy", "loud"], measure, one_image=5.0)] == ["noisy", "loud"]


def test_a_set_whose_trials_ran_out_says_so() -> None:
    budget = iter([False, True])

    def holds(left: Left) -> bool:
        try:
            return next(budget)
        except StopIteration:
            raise Spent from None

    found = smallest_set(["a", "b"], holds)
    assert (found.left, found.irreducible) == (("a",), False)


def test_a_bound_is_met_to_the_digit() -> None:
    assert Bound(max_drop=0.3).holds(Quality(0, 0, lost=90.1 - 89.8))
    assert not Bound(max_drop=0.3).holds(Quality(0, 0, lost=0.31))
    assert not Bound(max_drop=0.3).holds(Quality(0, 0))
    # 20 dB is a hundredth; the worse of both outputs counts.
    assert Bound(min_snr=20).holds(Quality(0.01, 0.001))
    assert not Bound(min_snr=20).holds(Quality(0.001, 0.011))
    assert Bound(min_snr=20).holds(Quality(0, 0))
    assert Quality(0, 0).snr_db == math.inf
    with pytest.raises(UsageError, match="give one bound"):
        Bound()
