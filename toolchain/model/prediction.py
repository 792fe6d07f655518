"""A torch localizer as functions of arrays."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from toolchain.model.lctr import Lctr

Floats = NDArray[np.float32]
Classes = NDArray[np.int64]


def predictor(model: Lctr) -> Callable[[Floats], tuple[Floats, Floats]]:
    """Normalized images (B, 3, S, S) -> logits (B, C) and fused maps (B, h, w), on the model's own device."""
    model.eval()
    device = model.cls_token.device

    @torch.inference_mode()
    def predict(images: Floats) -> tuple[Floats, Floats]:
        found = model(torch.from_numpy(images).to(device))
        return found.logits.cpu().numpy(), found.map.cpu().numpy()

    return predict


def class_predictor(model: Lctr) -> Callable[[Floats, Classes], tuple[Floats, Floats]]:
    """`predictor` for given classes instead of the predicted ones: it takes a class of each image (B,) as well.

    The maps of all classes, 4 C h w bytes per image, are gone when it returns.
    """
    model.eval()
    device = model.cls_token.device

    @torch.inference_mode()
    def predict(images: Floats, classes: Classes) -> tuple[Floats, Floats]:
        found = model.all_maps(torch.from_numpy(images).to(device))
        asked = found.maps[torch.arange(len(classes)), torch.from_numpy(classes)]
        return found.logits.cpu().numpy(), (found.attention * torch.relu(asked)).cpu().numpy()

    return predict
