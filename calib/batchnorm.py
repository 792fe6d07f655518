"""What FDDA looks at in a convolutional network: the inputs of its BatchNorms (arXiv:2109.04186; spec/fdda.md)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calib.moments import Moments
from calib.observation import View
from toolchain.errors import ModelError


def batchnorm_view(model: nn.Module) -> View:
    """A view of what reaches each BatchNorm that keeps running statistics: (B, D, ...) as vectors (B, N, D).

    Raises:
        ModelError: the network has none.
    """
    layers = tuple(_batchnorms(model))
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no BatchNorm with running statistics, which FDDA aligns images with: name a "
            "network that has."
        )
    return View(layers, channel_vectors)


def channel_vectors(layer: str, inputs: Tensor) -> Tensor:
    """(B, D, H, W), or with any number of dimensions after D -> (B, N, D), one vector for each position."""
    return inputs.flatten(2).transpose(1, 2) if inputs.ndim > 2 else inputs[:, None]


def running_moments(model: nn.Module) -> list[Moments]:
    """Running mean and variance (D,) of each layer of `batchnorm_view`."""
    return [
        Moments(norm.running_mean.clone(), norm.running_var.clone())
        for norm in _batchnorms(model).values()
        if norm.running_mean is not None and norm.running_var is not None
    ]


def deep_layers(layers: Sequence[str]) -> tuple[str, ...]:
    """The layers in which the published method holds classes apart: from `int((L + 1) / 2) - 2` on, counted from 0."""
    return tuple(layers[max(0, (len(layers) + 1) // 2 - 2) :])


def _batchnorms(model: nn.Module) -> dict[str, _BatchNorm]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    return {name: norm for name, norm in found.items() if norm.running_mean is not None}
