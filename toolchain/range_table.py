"""Chosen ranges as people read them: how many tensors got which method, and how calibrations compare by tensor."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolchain.artifacts import Artifact

OTHERS = {"training": "real images", "noise": "noise"}
"""What a quantized model's sidecar calls its images -> in words."""


@dataclass(frozen=True)
class RangeRow:
    """One quantized tensor.

    Attributes:
        tensor: name in the ONNX file.
        method: that chose its range; `known` where no image was asked.
        amax: the magnitude that becomes level 127.
        snr_db: signal over quantization error in decibels, under the histogram; infinite where every value was 0.
        ratios: other calibration -> this amax over that one's; NaN where that is 0 or was not observed.
    """

    tensor: str
    method: str
    amax: float
    snr_db: float
    ratios: Mapping[str, float]


def range_words(ranges: Mapping[str, Mapping[str, Any]]) -> str:
    """How many tensors got their range by which method, the most frequent one first."""
    counts = Counter(found["method"] for found in ranges.values()).most_common()
    return f"Ranges of {len(ranges)} tensors: " + ", ".join(f"{count} by {method}" for method, count in counts)


def range_rows(judged: Artifact, artifacts: Sequence[Artifact]) -> tuple[RangeRow, ...]:
    """The ranges of a quantized model, beside those of the same model calibrated on something else.

    Args:
        judged: the quantized model.
        artifacts: of the run; those of other kinds, or without ranges, do not count.
    """
    others = {
        OTHERS[images]: other.metadata["ranges"]
        for other in artifacts
        if other is not judged and other.kind == judged.kind and "ranges" in other.metadata
        if (images := str(other.parameters.get("images"))) in OTHERS
    }
    return tuple(
        RangeRow(
            tensor=name,
            method=found["method"],
            amax=found["amax"],
            snr_db=-10 * math.log10(found["error"]) if found["error"] else math.inf,
            ratios={words: _ratio(found["amax"], ranges.get(name)) for words, ranges in others.items()},
        )
        for name, found in judged.metadata.get("ranges", {}).items()
    )


def _ratio(amax: float, other: Mapping[str, Any] | None) -> float:
    return amax / other["amax"] if other and other["amax"] else math.nan
