"""How large the channels of activations get: what equalization is decided on."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calib.ranges import observations
from toolchain.errors import ModelError
from toolchain.progress import Progress, silent

IMAGES = 256
"""Real images need fewer, synthetic ones do not: behind a GELU a channel is huge on some images and silent on others.
SNR of lctr-small's logits / map, dB, by synthetic images for factors and ranges, on 48 photographs of validation:
128: 19.4 / 22.0; 256: 20.5 / 23.7; 512: 21.3 / 24.0. 128 real ones: 23.7 / 23.5."""


def channel_amax(
    observer: Path,
    tensors: Sequence[str],
    batches: Iterable[NDArray[np.float32]],
    *,
    input_name: str = "image",
    images: int,
    heads: Collection[str] = (),
    progress: Progress = silent,
) -> dict[str, NDArray[np.float64]]:
    """Largest |x| in each channel of `tensors`: their last axis, unless they are named in `heads`.

    Args:
        observer: as for `calib.ranges.observations`.
        tensors: likewise.
        batches: likewise, but no more of them are taken than hold `images`.
        input_name: likewise.
        images: to look at, rounded up to whole batches.
        heads: those of the tensors that are (B, H, M, D), and have the channels H * D.
        progress: called after each batch, in images.

    Returns:
        tensor name -> (C,).

    Raises:
        LctrError: as `calib.ranges.observations`.
        ModelError: a tensor holds NaN or infinity.
    """
    amax: dict[str, NDArray[np.float64]] = {}
    seen = 0
    for count, values in observations(observer, tensors, batches, input_name=input_name):
        for name in tensors:
            # Popped: no activation is alive when the next batch runs.
            largest = _largest(name, values.pop(name), name in heads)
            amax[name] = np.maximum(amax[name], largest) if name in amax else largest
        seen += count
        progress(seen, max(images, seen), f"channels of {len(tensors)} tensors")
        if seen >= images:
            break
    return amax


def _largest(tensor: str, values: NDArray[np.floating], by_head: bool) -> NDArray[np.float64]:
    if by_head:
        batch, heads, positions, depth = values.shape
        values = values.swapaxes(1, 2).reshape(batch, positions, heads * depth)
    rows = values.reshape(-1, values.shape[-1])
    largest: NDArray[np.float64] = np.maximum(rows.max(0, initial=0), -rows.min(0, initial=0)).astype(np.float64)
    if not np.isfinite(largest).all():
        raise ModelError(f"Tensor '{tensor}' holds NaN or infinity: check the model in float32 on the same images.")
    return largest
