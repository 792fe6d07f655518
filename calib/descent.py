"""Pixels that follow the gradient of a loss: what methods without a generator do all the way, and FDDA at the end."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from calib.teacher import Teacher
from toolchain.errors import TrainingError
from toolchain.progress import Progress

Terms = Callable[[int, Tensor], Mapping[str, Tensor]]
"""Number of the step, from 0, and images (B, 3, S, S) -> terms of a loss, which is their sum."""


def descended(
    images: Tensor,
    terms: Terms,
    *,
    rates: Sequence[float],
    betas: tuple[float, float],
    teacher: Teacher,
    progress: Progress,
) -> tuple[Tensor, dict[str, list[float]]]:
    """Images (B, 3, S, S) after one step of Adam for each of the rates, always within black and white.

    Args:
        images: normalized, where the descent starts.
        terms: of the loss.
        rates: learning rate of each step.
        betas: of Adam.
        teacher: whose normalization it is.
        progress: counts steps.

    Returns:
        the images, and the terms and the `total` at each step.

    Raises:
        TrainingError: a loss is no longer finite.
    """
    images = images.clone().requires_grad_()
    optimizer = torch.optim.Adam([images], rates[0], betas)
    curve: dict[str, list[float]] = {}
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        found = terms(step, images)
        total = torch.stack(list(found.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        with torch.no_grad():
            images.clamp_(*teacher.valid_range())
        for name, term in {"total": total, **found}.items():
            curve.setdefault(name, []).append(float(term.detach()))
        last = curve["total"][-1]
        if not math.isfinite(last):
            raise TrainingError(f"the loss is {last} at step {step + 1}: lower the learning rate.")
        progress(step + 1, len(rates), f"loss {last:.3f}")
    return images.detach(), curve


def jittered(images: Tensor, share: float, random: torch.Generator) -> Tensor:
    """Images (B, 3, S, S) shifted around their edges by up to a share of their side, and half of the time mirrored."""
    most = round(share * images.shape[-1])
    shift = int(torch.randint(-most, most + 1, (), generator=random))
    shifted = images.roll((shift, shift), (2, 3))
    return shifted.flip(3) if torch.rand((), generator=random) < 0.5 else shifted
