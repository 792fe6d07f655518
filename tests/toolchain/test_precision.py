"""`lctr build --precision auto`: which precision ships, and what is said about it."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from deployment import lctr
from square_finder import finder, squares

from engines import onnxruntime
from engines.backend import PLAIN
from engines.benchmark import Settings, benchmark
from engines.memory import MemorySession
from engines.timing import Timings
from toolchain.artifacts import load
from toolchain.errors import ModelError
from toolchain.precision import Candidate, candidate_from_measurement, decision, speed


def rounds(*medians: float) -> tuple[tuple[float, ...], ...]:
    """Rounds of one call each."""
    return tuple((median,) for median in medians)


FP32 = Candidate("FP32", 0.0, 10.0, rounds(10.0, 10.2, 9.8))
FP16 = Candidate("FP16", 0.02, 8.0, rounds(8.0, 8.1, 7.9))
INT8 = Candidate("INT8", 0.1, 5.0, rounds(5.0, 5.1, 4.9))


def verdict(*candidates: Candidate, max_drop: float = 0.5) -> tuple[str, str]:
    found = decision(candidates, max_drop)
    return found.winner, found.verdict


# What is decided, on numbers.


def test_the_fastest_within_the_bound_ships_and_says_what_it_gains() -> None:
    # Against the best of the others: 8 / 5. Any three of the rounds have one of their ratios, 8 / 5, 8.1 / 5.1 and
    # 7.9 / 4.9; the lowest and the highest come up in 7 of 27 draws each, far more than 2.5 %.
    assert verdict(FP32, FP16, INT8) == (
        "INT8",
        "INT8 is worth it: 1.60x as fast as FP16 (1.59 to 1.61 at 95 %) at -0.10 points",
    )


def test_int8_that_is_slower_does_not_ship() -> None:
    slow = Candidate("INT8", 0.1, 16.0, rounds(16.0, 16.0, 16.0))
    winner, said = verdict(FP32, FP16, slow)
    assert winner == "FP16"
    assert said == "ship FP16 (1.25x as fast as FP32): INT8 is slower here (0.50x, 0.49 to 0.51 at 95 %)"


def test_no_difference_beyond_noise_ships_the_more_precise_one() -> None:
    # Faster by the medians, and in two of three rounds; not in the third.
    doubtful = Candidate("INT8", 0.0, 9.5, rounds(9.5, 9.0, 10.0))
    assert verdict(FP32, doubtful) == (
        "FP32",
        "ship FP32: INT8 is no faster beyond noise (1.05x, 0.98 to 1.13 at 95 %)",
    )


@pytest.mark.parametrize(("lost", "winner"), [(0.5, "INT8"), (0.51, "FP16"), (-3.0, "INT8")])
def test_the_bound_is_held(lost: float, winner: str) -> None:
    found = decision([FP32, FP16, Candidate("INT8", lost, INT8.median, INT8.rounds)], 0.5)
    assert found.winner == winner
    if winner == "FP16":
        assert "INT8 loses 0.51 points, more than 0.5" in found.verdict
    if lost < 0:
        assert found.verdict.endswith("at +3.00 points")


def test_all_that_is_lost_ships_the_reference() -> None:
    winner, said = verdict(
        FP32, Candidate("FP16", 9.0, 1.0, rounds(1.0, 1.0, 1.0)), Candidate("INT8", 8.0, 1.0, rounds(1.0, 1.0, 1.0))
    )
    assert winner == "FP32"
    assert said == "ship FP32: FP16 loses 9.00 points, more than 0.5; INT8 loses 8.00 points, more than 0.5"


def test_broken_outputs_never_ship() -> None:
    broken = Candidate("INT8", 0.0, 1.0, rounds(1.0, 1.0, 1.0), ("logits is 0 everywhere",))
    assert verdict(FP32, broken) == ("FP32", "ship FP32: INT8 returns broken outputs (logits is 0 everywhere)")
    with pytest.raises(ModelError, match="INT8 returns broken outputs"):
        decision([broken, FP32], 0.5)


def test_rounds_are_those_of_the_benchmark() -> None:
    ticks = iter(np.repeat(np.arange(1.0, 1000.0), 2).tolist())

    class Scripted(MemorySession):
        def time(self, feeds, iterations, options=PLAIN):
            return Timings(tuple(next(ticks) for _ in range(iterations)), "scripted")

    settings = Settings(warmup=0, rounds=3, iterations=2)
    feeds = [[{"image": np.arange(6.0).reshape(2, 3) * k} for k in (1, 2)]]
    (row,) = benchmark({"a": Scripted(), "b": Scripted()}, feeds, settings).batches.values()
    found = {name: candidate_from_measurement(name, 0.0, row[name]) for name in row}
    # Ticks come in pairs, a round is one pair, and a and b take turns.
    assert (found["a"].rounds, found["b"].rounds) == (
        ((1.0, 1.0), (3.0, 3.0), (5.0, 5.0)),
        ((2.0, 2.0), (4.0, 4.0), (6.0, 6.0)),
    )
    of_b = speed(found["b"], found["a"])
    # Three times the first round makes 1 / 2, three times the last one 5 / 6; each in 7 of 27 draws.
    assert (of_b.value, of_b.low, of_b.high) == (3 / 4, 1 / 2, 5 / 6)


# What is built and measured, by the command line.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def models(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The localizer in float, planted; in INT8, which loses all; and the same graph once more, unlabelled."""
    folder = tmp_path_factory.mktemp("models")
    fp32 = finder(folder / "fp32.onnx")
    images = Path(data.removeprefix("folder:")) / "train" / "red"
    lctr("quantize", fp32, "--images", images, "--method", "max", "-o", folder / "int8.onnx")
    other = onnx.load(fp32)
    onnx.save(other, folder / "other.onnx")
    return {"fp32": fp32, "int8": folder / "int8.onnx", "other": folder / "other.onnx"}


def built(*arguments: object):
    return lctr("build", *arguments, "--backend", "onnxruntime", "--precision", "auto")


def test_the_verdict_comes_first_and_stands_in_the_sidecar(models: dict[str, Path], data: str, tmp_path: Path) -> None:
    output = tmp_path / "best.engine"
    told = built(models["fp32"], models["int8"], "--data", data, "-o", output)
    assert told.exit_code == 0, told.output
    first, *_ = told.stdout.splitlines()
    # It sees nothing in the benchmark's noise either, which is worse than a drop.
    assert first == "ship fp32.onnx: INT8 returns broken outputs (logits is 0 everywhere)"
    assert told.stdout.splitlines()[-1] == str(output)
    artifact = load(output, "engine")
    assert artifact.metadata["verdict"] == first
    assert artifact.metadata["choice"]["accuracy"]["INT8"]["evaluation"]["gt_known_loc"] == 0
    assert set(artifact.inputs) == {"model", "INT8"}
    # The engine is one as any other.
    evaluated = json.loads(lctr("evaluate", output, "--data", data, "--json").stdout)
    assert evaluated["gt_known_loc"] == 100
    assert lctr("verify", output).exit_code == 0


def test_the_fastest_ships_where_it_holds(
    models: dict[str, Path], data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = onnxruntime.OnnxRuntimeSession.time

    def slowly(self, feeds, iterations, options=PLAIN):
        # Which of two equal graphs is faster on a loaded machine is left to nobody.
        factor = 1 if "1.engine" in str(self._source) else 100
        return Timings(tuple(factor * ms for ms in time(self, feeds, iterations).milliseconds), "scripted")

    monkeypatch.setattr(onnxruntime.OnnxRuntimeSession, "time", slowly)
    told = built(models["fp32"], models["other"], "--data", data, "-o", tmp_path / "e.engine", "--json")
    record = json.loads(told.stdout)
    assert record["chosen"] == "other.onnx"
    assert record["verdict"].startswith("other.onnx is worth it: ")
    assert record["verdict"].endswith(" at 0.00 points")
    assert record["latency"]["batches"].keys() == {"8"}


def test_where_nothing_runs_nothing_is_chosen(models: dict[str, Path], data: str, tmp_path: Path) -> None:
    told = lctr(
        *("build", models["fp32"], models["int8"], "--backend", "tensorrt-rtx", "--precision", "auto"),
        *("--data", data, "-o", tmp_path / "e.engine"),
    )
    assert told.exit_code == 1
    assert told.stderr.startswith("Error: Nothing could be measured, so nothing was chosen: ")
    assert "build one file without --precision auto" in told.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("{fp32}", "{int8}"), "name a data set with boxes with --data"),
        (("{fp32}", "--data", "{data}"), "fp32.onnx is alone: add the others"),
        (("{int8}", "{fp32}", "--data", "{data}"), "int8.onnx is quantized, and the others are held against the first"),
        (("{fp32}", "{fp32}", "--data", "{data}"), "repeat: name each file once"),
        (("{fp32}", "{int8}", "--data", "{data}", "--max-drop", "-1"), "--max-drop -1 asks for a gain"),
        (("{fp32}", "--precision", "fp16"), "--precision fp16 is no choice"),
    ],
)
def test_wrong_usage_exits_with_2(
    arguments: tuple[str, ...], complaint: str, models: dict[str, Path], data: str, tmp_path: Path
) -> None:
    named = [argument.format(**models, data=data) for argument in arguments]
    precision = () if "--precision" in named else ("--precision", "auto")
    told = lctr("build", *named, *precision, "--backend", "onnxruntime", "-o", tmp_path / "e.engine")
    assert told.exit_code == 2, told.output
    assert complaint in told.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("{fp32}", "{int8}"), ("{fp32}", "--max-drop", "1")])
def test_what_is_for_auto_means_nothing_without_it(
    arguments: tuple[str, ...], models: dict[str, Path], tmp_path: Path
) -> None:
    named = [argument.format(**models) for argument in arguments]
    told = lctr("build", *named, "--backend", "onnxruntime", "-o", tmp_path / "e.engine")
    assert told.exit_code == 2
    assert "--precision auto" in told.stderr
