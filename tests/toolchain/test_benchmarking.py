"""`lctr benchmark` on a localizer of three layers: what it prints, what it writes, and when it fails."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from deployment import lctr
from foreign_cnn import foreign_cnn
from onnx import numpy_helper
from square_finder import finder, squares

from engines import onnxruntime_session
from engines.timing import D2H, ENQUEUE, GPU_COMPUTE, H2D, Timings
from toolchain.artifacts import sha256_of

QUICK = ("--batch", "2", "--warm-up", "0", "--rounds", "3", "--iterations", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return squares(tmp_path_factory.mktemp("squares"))


def with_weight(source: Path, target: Path, name: str, factor: float) -> Path:
    """The same model with one weight multiplied."""
    model = onnx.load(source)
    weight = next(w for w in model.graph.initializer if w.name == name)
    weight.CopyFrom(numpy_helper.from_array((factor * numpy_helper.to_array(weight)).astype(np.float32), name))
    onnx.save(model, target)
    return target


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    right = finder(folder / "right.onnx")
    return {
        "right": right,
        "off": with_weight(right, folder / "off.onnx", "class_weight", 1.5),
        "zero": with_weight(right, folder / "zero.onnx", "class_weight", 0),
        "nan": with_weight(right, folder / "nan.onnx", "class_weight", np.nan),
    }


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """File name -> milliseconds that each of its calls takes; 10 unless a test says otherwise."""
    pace: dict[str, float] = {}

    def time(self, feeds, iterations, options):
        ms = next((each for name, each in pace.items() if name in str(self._source)), 10.0)
        return Timings((ms,) * iterations, "scripted", settings={"provider": "cpu"})

    monkeypatch.setattr(onnxruntime_session.OnnxRuntimeSession, "time", time)
    return pace


def test_the_record_holds_every_sample_and_what_was_measured(
    files: dict[str, Path], data: str, ticking: dict[str, float], tmp_path: Path
) -> None:
    output, plot = tmp_path / "record.json", tmp_path / "pareto.png"
    ticking["off"] = 5
    names = (files["right"], files["off"])
    told = lctr("benchmark", *names, *QUICK, "--data", data, "-o", output, "--plot", plot, "--json")
    assert told.exit_code == 0, told.output
    record, printed = json.loads(output.read_text()), json.loads(told.stdout)
    measured = record["latency"]["batches"]["2"]["off.onnx"]
    assert [r["milliseconds"] for r in measured["rounds"]] == [[5, 5]] * 3
    assert measured["ratio"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert measured["throughput"]["mean"] == 400
    assert measured["timings"]["settings"] == {"provider": "cpu"}
    # Half of the scores is noise: 20 log10(2).
    assert measured["agreement"]["logits"]["snr_db"] == pytest.approx(6.02, abs=0.01)
    assert measured["agreement"]["map"]["equal"]
    assert record["files"]["off.onnx"]["sha256"] == sha256_of(files["off"])
    assert record["files"]["off.onnx"]["bytes"] == files["off"].stat().st_size
    assert record["accuracy"]["off.onnx"]["drops"]["top1_loc"] == {"lost": 0, "gained": 0, "images": 12}
    assert {"cpu", "gpu"} <= set(record["machine"])
    assert "onnxruntime" in record["versions"]
    assert record["latency"]["settings"]["rounds"] == 3
    assert record["schema"] == 1
    # What is printed is the same without the samples.
    for row in record["latency"]["batches"].values():
        for each in row.values():
            del each["rounds"]
    assert printed == record
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_nothing_but_json_is_written(files: dict[str, Path], ticking: dict[str, float], tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    lctr("benchmark", files["right"], files["off"], *QUICK, "-o", output)
    # Infinity, which equal outputs have for their SNR, is none.
    json.loads(output.read_text(), parse_constant=lambda word: pytest.fail(word))


def test_what_a_session_cannot_tell_apart_is_a_dash(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, ticking: dict[str, float]
) -> None:
    plain = onnxruntime_session.OnnxRuntimeSession.time

    def time(self, feeds, iterations, options):
        if "off" not in str(self._source):
            return plain(self, feeds, iterations, options)
        phases = {H2D: (1.0,), GPU_COMPUTE: (8.0,), D2H: (1.0,), ENQUEUE: (7.9,)}
        each = {phase: samples * iterations for phase, samples in phases.items()}
        return Timings((10.0,) * iterations, "CUDA events", each, settings={"cuda_graph": True, "streams": 2})

    monkeypatch.setattr(onnxruntime_session.OnnxRuntimeSession, "time", time)
    told = lctr("benchmark", files["right"], files["off"], *QUICK)
    assert told.exit_code == 0, told.output
    lines = [line.split() for line in told.stdout.splitlines()]
    for name in ("H2D Latency,", "GPU Compute Time,", "D2H Latency,", "Enqueue Time,"):
        rows = [line for line in lines if " ".join(line[2:]).startswith(name)]
        assert rows[0][-9:] == ["-"] * 9
        assert "-" not in rows[1]
    assert [line[1] for line in lines if "Throughput," in line] == ["right.onnx", "off.onnx"]
    (settings,) = [line for line in lines if line[:4] == ["2", "off.onnx", "CUDA", "events"]]
    assert settings[-2:] == ["yes", "2"]
    assert "Warning: off.onnx, batch 2: enqueue-bound" in told.stderr
    assert "no difference beyond noise" in told.stdout


@pytest.mark.parametrize(
    ("broken", "problem"), [("zero", "logits is 0 everywhere"), ("nan", "logits is not finite in 16 of 16 values")]
)
@pytest.mark.parametrize("with_data", [False, True])
def test_a_broken_engine_fails_after_the_table(
    broken: str, problem: str, with_data: bool, files: dict[str, Path], data: str, ticking: dict[str, float]
) -> None:
    accuracy = ("--data", data, "--max-drop", "0.5") if with_data else ()
    told = lctr("benchmark", files["right"], files[broken], *QUICK, *accuracy)
    assert told.exit_code == 1
    assert problem in told.stdout
    assert f"Error: {broken}.onnx returns broken outputs at batch 2 ({problem})" in told.stderr


def test_the_reference_need_not_come_first(files: dict[str, Path], ticking: dict[str, float]) -> None:
    told = lctr("benchmark", files["off"], "--reference", files["right"], *QUICK, "--json")
    record = json.loads(told.stdout)
    assert record["latency"]["baseline"] == "right.onnx"
    assert list(record["latency"]["batches"]["2"]) == ["right.onnx", "off.onnx"]


def test_a_file_may_name_its_backend(files: dict[str, Path], ticking: dict[str, float]) -> None:
    told = lctr("benchmark", files["right"], f"{files['right']}@onnxruntime", *QUICK, "--json")
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout)
    assert list(record["files"]) == ["right.onnx", "right.onnx@onnxruntime"]
    assert record["files"]["right.onnx@onnxruntime"]["backend"] == "onnxruntime"


@pytest.mark.parametrize(
    ("bound", "code"),
    [
        (("--max-p99", "4ms"), 3),
        (("--max-p99", "6ms"), 0),
        (("--min-throughput", "401"), 3),
        (("--min-throughput", "399"), 0),
    ],
)
def test_bounds_exit_with_3(
    bound: tuple[str, str], code: int, files: dict[str, Path], ticking: dict[str, float]
) -> None:
    ticking["off"] = 5
    told = lctr("benchmark", files["right"], files["off"], *QUICK, *bound)
    assert told.exit_code == code, told.output
    assert (bound[0] in told.stderr) == (code == 3)


def test_a_drop_beyond_noise_fails(
    files: dict[str, Path], data: str, ticking: dict[str, float], tmp_path: Path
) -> None:
    # Scores with the sign turned name the other colour: all 12 images are lost.
    turned = with_weight(files["right"], tmp_path / "turned.onnx", "class_weight", -1)
    told = lctr("benchmark", files["right"], turned, *QUICK, "--data", data, "--max-drop", "50")
    assert told.exit_code == 3
    assert "turned.onnx's drop of top1_loc on 12 images is 100 points" in told.stderr


def test_energy_without_a_gpu_is_refused_before_anything_is_measured(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    told = lctr("benchmark", files["right"], *QUICK, "--max-energy", "40mJ")
    assert told.exit_code == 1
    assert told.stdout == ""
    assert (
        "--max-energy cannot be held, for nothing counts energy here (NVML: nvidia-ml-py is not installed)"
        in told.stderr
    )


def test_the_duration_decides_how_many_calls(files: dict[str, Path], ticking: dict[str, float]) -> None:
    told = lctr("benchmark", files["right"], "--batch", "1,2", "--warm-up", "0", "--duration", "600ms", "--rounds", "4")
    assert told.exit_code == 0, told.output
    # 60 calls of 10 ms.
    assert told.stdout.count("4 x 15") == 2


def test_anybody_s_model_is_timed_on_what_it_takes(tmp_path: Path) -> None:
    one, other = foreign_cnn(tmp_path / "one.onnx"), foreign_cnn(tmp_path / "other.onnx", seed=1)
    record = json.loads(lctr("benchmark", one, other, *QUICK, "--json").stdout)
    row = record["latency"]["batches"]["2"]
    assert row["one.onnx"]["timings"]["n"] == row["other.onnx"]["timings"]["n"] == 6
    assert row["other.onnx"]["agreement"]["scores"]["snr_db"] < 20
    assert record["accuracy"] == {}


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ({"batch": "4"}, (), "Input 'pixels' of one.onnx is [4, 3, 11, 11]: give --batch 4."),
        ({"size": "side"}, (), "export it with its batch alone dynamic."),
        ({}, ("--data", "shapes"), "one.onnx does not say its preset: it was not made by lctr"),
    ],
)
def test_what_a_model_takes_may_be_unknown_or_not_fit(
    model: dict[str, str], options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    told = lctr("benchmark", foreign_cnn(tmp_path / "one.onnx", **model), *QUICK, *options)
    assert told.exit_code in (1, 2)
    assert message in told.stderr
