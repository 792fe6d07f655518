"""Ranges as tables show them, from sidecars made by hand."""

import math
from pathlib import Path

import pytest

from toolchain.artifacts import Artifact
from toolchain.range_table import range_rows, range_words


def found(amax: float, method: str = "max", error: float = 1e-4) -> dict[str, object]:
    return {"amax": amax, "method": method, "error": error, "minimum": -amax, "maximum": amax}


def quantized(images: str | None, kind: str = "onnx-int8", **amax: float) -> Artifact:
    parameters = {"images": images} if images else {"limit": None}
    ranges = {name: found(value) for name, value in amax.items()}
    return Artifact(Path("model.onnx"), kind, "0" * 64, 1, parameters, {}, {"ranges": ranges})


def test_methods_are_counted_most_frequent_first() -> None:
    ranges = {"a": found(1, "mse"), "b": found(1), "c": found(1), "image": found(1, "known")}
    assert range_words(ranges) == "Ranges of 4 tensors: 2 by max, 1 by mse, 1 by known"


def test_calibrations_are_compared_tensor_by_tensor() -> None:
    judged = quantized(None, a=3.0, b=1.0)
    artifacts = [judged, quantized("noise", a=6.0, b=0.0), quantized("training", a=2.0)]
    first, second = range_rows(judged, artifacts)
    assert (first.tensor, first.method, first.amax) == ("a", "max", 3.0)
    assert first.snr_db == pytest.approx(40)  # an error of 1e-4 of the signal
    assert first.ratios == {"noise": 0.5, "real images": 1.5}
    assert all(map(math.isnan, second.ratios.values()))  # nothing is 1 / 0, or was not observed


def test_without_others_there_is_nothing_to_compare_with() -> None:
    judged = quantized("noise", a=3.0)
    (row,) = range_rows(judged, [judged])
    assert row.ratios == {}
    assert range_rows(quantized(None, a=1.0), [quantized("noise", kind="onnx")])[0].ratios == {}


def test_a_tensor_without_error_has_infinite_snr() -> None:
    judged = Artifact(Path("m"), "onnx-int8", "0", 1, metadata={"ranges": {"dead": found(0.0, error=0.0)}})
    assert range_rows(judged, [])[0].snr_db == math.inf
