"""What the benchmarks measure: an LCTR of given size, as torch runs it, and the check that two forms of it agree."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from photographs import Photographs

from engines.backend import Feeds
from engines.memory import MemorySession
from toolchain.model.checkpoint import card_of, load_start
from toolchain.model.lctr import Lctr
from toolchain.model.presets import preset_named

FINETUNED = Photographs().localizer
TOLERANCE = 1e-4
"""Of an output's largest value: what two forms of one model may differ by in float32."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which model, on how many threads, how often, and where the record goes."""
    parser.add_argument("--preset", default="lctr-small")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--backbone", type=Path, help=f"Default: {FINETUNED}, where it is there and of this preset.")
    parser.add_argument("-o", "--output", type=Path)


def model_from_options(options: argparse.Namespace) -> tuple[Lctr, str]:
    """A model, and what its weights are, in words; the head is random, for the backbone's has other classes.

    Speed does not depend on them, but equality shows only where every one of them counts.
    """
    torch.manual_seed(0)
    model = Lctr(preset_named(options.preset), options.classes).eval()
    start = options.backbone
    if start is None and FINETUNED.exists() and card_of(FINETUNED).preset == options.preset:
        start = FINETUNED
    weights = f"random: no {FINETUNED} of this preset"
    if start is not None:
        weights = f"{load_start(model, (), start)} of {start}, the rest random"
    print(f"Weights: {weights}.", file=sys.stderr)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_routing_fn_two" in name:
                parameter.normal_(0, 0.05)
    return model, weights


def eager(model: torch.nn.Module) -> MemorySession:
    """A torch module behind the interface of an engine."""

    @torch.inference_mode()
    def run(feeds: Feeds) -> dict[str, NDArray[Any]]:
        outputs = model(torch.from_numpy(feeds["image"]))
        return {"logits": outputs[0].numpy(), "map": outputs[1].numpy()}

    return MemorySession(run, outputs=("logits", "map"))


def require_equal(outputs: dict[str, dict[str, NDArray[Any]]]) -> None:
    """End the benchmark where outputs of one batch differ from those of the first in `outputs`."""
    reference = next(iter(outputs.values()))
    for name, found in outputs.items():
        for output, expected in reference.items():
            error = float(np.abs(found[output] - expected).max() / np.abs(expected).max())
            if not error <= TOLERANCE:
                sys.exit(f"'{output}' of {name} deviates by {error:.1e} of its largest value: nothing was timed.")
