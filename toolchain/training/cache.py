"""The output of frozen blocks for some views of each image, computed once: training then costs the rest alone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from toolchain.errors import UsageError
from toolchain.model.lctr import Cues, Halfway, Lctr
from toolchain.progress import Progress, silent
from toolchain.training.sources import Source, Wanted, seeds

PLAIN_VIEWS = 2
"""The image as it is, and flipped left-right."""
MEMORY = Path("/proc/meminfo")


@torch.no_grad()
def frozen_outputs(
    model: Lctr,
    frozen_blocks: int,
    plain: Source,
    augmented: Source | None = None,
    *,
    views: int = 0,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress = silent,
) -> Halfway | Cues:
    """What frozen blocks make of each image as it is, of its mirror image, and of `views` augmented views.

    Args:
        model: put into eval mode.
        frozen_blocks: how many, from the first; with all of them the final LayerNorm is frozen too.
        plain: the images as the deployed model sees them.
        augmented: what augmented views are loaded from; every other one is of the mirror image.
        views: augmented views of each image; needs `augmented`.
        seed: of the augmented views.
        batch_size: images per pass.
        progress: called after each pass.

    Returns:
        on the CPU: `Cues` where all blocks are frozen, features (2 + views, N, D, h, w) float16; else `Halfway`, tokens
        (2 + views, N, 1 + h w, D) float16. With either, class attention (2 + views, N, h, w) float32.

    Raises:
        UsageError: the result does not fit in the memory that is left.
    """
    model.eval()
    device = model.cls_token.device
    sources = [plain] * PLAIN_VIEWS + ([augmented] * views if augmented else [])
    cached = _room(model, frozen_blocks, len(sources), len(plain))
    stream = np.random.default_rng(seed)
    done = 0
    for view, source in enumerate(sources):
        wanted = list(_wanted(len(plain), view % 2 == 1, batch_size, stream))
        for (rows, _, _), (images, _) in zip(wanted, source.load(wanted), strict=True):
            images = images.to(device)
            whole = frozen_blocks == model.preset.depth
            outputs = model.cues(images) if whole else model.halfway(images, frozen_blocks)
            for part, output in zip(cached, outputs, strict=True):
                part[view, rows] = output.to(part)
            done += len(rows)
            progress(done, len(sources) * len(plain))
    return cached


def _wanted(count: int, flipped: bool, batch_size: int, stream: np.random.Generator) -> Iterator[Wanted]:
    for rows in torch.arange(count).split(batch_size):
        yield Wanted(rows, torch.full((len(rows),), flipped), seeds(len(rows), stream))


def _room(model: Lctr, frozen_blocks: int, views: int, count: int) -> Halfway | Cues:
    dim, grid = model.preset.dim, model.preset.grid
    whole = frozen_blocks == model.preset.depth
    shape = (views, count, dim, grid, grid) if whole else (views, count, 1 + grid**2, dim)
    needed, free = 2 * torch.Size(shape).numel() / 2**30, _free_memory()
    if free is not None and needed > free:
        raise UsageError(
            f"the cached output of {frozen_blocks} frozen blocks for {views} views of {count} images takes "
            f"{needed:.1f} GiB and {free:.1f} GiB are free: lower --views or --images, or train all blocks."
        )
    largest = torch.empty(shape, dtype=torch.float16)
    attention = torch.empty(views, count, grid, grid)
    return Cues(largest, attention) if whole else Halfway(largest, attention)


def _free_memory() -> float | None:
    """GiB that can be had without swapping; None where the system does not say."""
    if not MEMORY.exists():
        return None
    lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20
