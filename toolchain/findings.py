"""What a deployment found out. The pipeline fills it in, the report shows it, and neither knows the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolchain.artifacts import Artifact
from toolchain.card import ModelCard
from toolchain.evaluation import Evaluation, OutputError
from toolchain.preprocessing import Box


@dataclass(frozen=True)
class Arm:
    """One model of the accuracy table.

    Attributes:
        name: `FP32`, `INT8, FDDA`, `INT8, FDDA, FP16 base`, `INT8, noise`, `INT8, real images`.
        calibration: what its ranges were taken from, in words; empty for FP32.
        evaluation: metrics on held-out images, the same for every arm.
        error: distance of its outputs from FP32's; None for FP32.
    """

    name: str
    calibration: str
    evaluation: Evaluation
    error: OutputError | None


@dataclass(frozen=True)
class Example:
    """One held-out image, localized by FP32 and by INT8.

    Attributes:
        name: file name or index.
        image: (S, S, 3) uint8 RGB.
        truth: true class and box.
        fp32, int8: predicted class, box, and fused map (h, w).
    """

    name: str
    image: NDArray[np.uint8]
    truth: tuple[str, Box]
    fp32: tuple[str, Box, NDArray[np.float32]]
    int8: tuple[str, Box, NDArray[np.float32]]


@dataclass(frozen=True)
class Stage:
    """One stage of the run: how long it took, and whether an earlier result was reused."""

    name: str
    seconds: float
    reused: bool


@dataclass(frozen=True)
class Findings:
    """Everything the report shows.

    Attributes:
        card: of the localizer.
        data: what was evaluated on, as given to `--data`.
        arms: FP32 first, then INT8 by FDDA on FP32 and on FP16, by noise, by real images.
        latency: `engines.benchmark.Benchmark.as_dict()`: FP32 against INT8.
        inspections: engine or model name -> `engines.inspection.Inspection.as_dict()`.
        not_run: why an engine was compiled but not run here; empty if it ran.
        examples: held-out images.
        synthetic: the folder of synthetic images.
        preview: PNG grid of them.
        losses: PNG of the generator's loss curves.
        artifacts: of the run, in the order they were made.
        stages: likewise.
    """

    card: ModelCard
    data: str
    arms: tuple[Arm, ...]
    latency: Mapping[str, Any]
    inspections: Mapping[str, Mapping[str, Any]]
    not_run: str
    examples: tuple[Example, ...]
    synthetic: Path
    preview: Path
    losses: Path
    artifacts: tuple[Artifact, ...]
    stages: tuple[Stage, ...]
