"""What samples amount to: the figures that trtexec gives of each of its times."""

from collections.abc import Sequence
from typing import Any

import numpy as np

PERCENTILES = (90, 95, 99)


def figures(samples: Sequence[float]) -> dict[str, Any]:
    """`min`, `max`, `mean`, `median`, `p90`, `p95`, `p99` in the samples' unit, `cv` and `n`.

    Percentiles are interpolated linearly between neighbouring samples; `cv`, the coefficient of variation, is the
    population standard deviation over the mean.
    """
    values = np.asarray(samples, np.float64)
    return {
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        **{f"p{q}": float(np.percentile(values, q)) for q in PERCENTILES},
        "cv": coefficient_of_variation(values),
        "n": values.size,
    }


def coefficient_of_variation(samples: Sequence[float] | np.ndarray[Any, Any]) -> float:
    """Population standard deviation over mean; 0 where all samples are 0, and equal therefore."""
    mean = float(np.mean(samples))
    return float(np.std(samples)) / mean if mean else 0.0
