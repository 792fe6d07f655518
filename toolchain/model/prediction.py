"""A torch localizer as a function of arrays."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from toolchain.model.lctr import Lctr

Floats = NDArray[np.float32]


def predictor(model: Lctr) -> Callable[[Floats], tuple[Floats, Floats]]:
    """Normalized images (B, 3, S, S) -> logits (B, C) and fused maps (B, h, w), on the model's own device."""
    model.eval()
    device = model.cls_token.device

    @torch.inference_mode()
    def predict(images: Floats) -> tuple[Floats, Floats]:
        found = model(torch.from_numpy(images).to(device))
        return found.logits.cpu().numpy(), found.map.cpu().numpy()

    return predict
