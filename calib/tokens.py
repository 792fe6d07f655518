"""Observation: what flows into named modules of a transformer, as moments over patch tokens.

LayerNorm keeps no running statistics and its output has mean 0 and variance 1 whatever the image, so it is the *input*
of each LayerNorm, the residual stream, that is looked at (spec/fdda.md, route 2).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toolchain.errors import ModelError

SCALE_FLOOR = 1e-3
"""A channel's variance counts as at least this share of its layer's mean variance: a dead channel is no target."""


class Moments(NamedTuple):
    """First two moments per channel.

    Attributes:
        mean: (..., D).
        variance: (..., D), biased (divided by the number of tokens).
    """

    mean: Tensor
    variance: Tensor


class Observation:
    """Patch tokens that reached the observed modules in the last forward pass."""

    def __init__(self, layers: Sequence[str]) -> None:
        self._layers = tuple(layers)
        self._seen: dict[str, Tensor] = {}

    def record(self, layer: str, tokens: Tensor) -> None:
        """Keep the patch tokens of one module's input (B, 1+N, D); the class token, index 0, is left out.

        Raises:
            ModelError: the input is no token sequence, or the module ran twice in one pass.
        """
        if tokens.ndim != 3 or tokens.shape[1] < 2:
            raise ModelError(
                f"module '{layer}' takes an input of shape {tuple(tokens.shape)}, not (batch, 1 + patches, channels): "
                "name LayerNorms of the residual stream."
            )
        if layer in self._seen:
            raise ModelError(f"module '{layer}' runs more than once per image: name a module that runs once.")
        self._seen[layer] = tokens[:, 1:]

    def take(self) -> list[Tensor]:
        """Patch tokens (B, N, D) of each layer, in the order asked for; the observation is empty afterwards.

        Raises:
            ModelError: a layer did not run.
        """
        missing = [layer for layer in self._layers if layer not in self._seen]
        if missing:
            raise ModelError(f"modules {', '.join(missing)} did not run: name modules that every image passes.")
        tokens = [self._seen[layer] for layer in self._layers]
        self._seen.clear()
        return tokens


@contextmanager
def observing(model: nn.Module, layers: Sequence[str]) -> Iterator[Observation]:
    """Watch the inputs of the submodules called `layers`; the model is left without hooks, whatever happens.

    Raises:
        ModelError: no such submodule.
    """
    modules = dict(model.named_modules())
    unknown = [layer for layer in layers if layer not in modules]
    if unknown:
        raise ModelError(f"the model has no module {', '.join(unknown)}: give names that `named_modules()` lists.")
    observation = Observation(layers)
    handles = []

    def watch(layer: str) -> Any:
        return lambda module, inputs: observation.record(layer, inputs[0])

    try:
        for layer in layers:
            handles.append(modules[layer].register_forward_pre_hook(watch(layer)))
        yield observation
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with no parameter asking for a gradient; both are put back afterwards.

    Gradients still reach the *images*: that is how a generator learns from a teacher that does not change.
    """
    modes = {module: module.training for module in model.modules()}
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in asking:
            parameter.requires_grad_(False)
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in asking:
            parameter.requires_grad_(True)


def image_moments(tokens: Tensor) -> Moments:
    """Per image, over its tokens: (B, N, D) -> mean and variance (B, D)."""
    variance, mean = torch.var_mean(tokens, dim=1, correction=0)
    return Moments(mean, variance)


def batch_moments(tokens: Tensor) -> Moments:
    """Over all tokens of all images: (B, N, D) -> mean and variance (D,)."""
    variance, mean = torch.var_mean(tokens, dim=(0, 1), correction=0)
    return Moments(mean, variance)


def relative_to(reference: Moments, moments: Moments) -> Moments:
    """Moments in units of the reference's standard deviation, per channel.

    Args:
        reference: global mean and variance of the layer, (D,).
        moments: (..., D).

    Returns:
        `(mean - mean_ref) / std_ref` and `variance / std_ref^2`: the reference itself becomes 0 and 1.
    """
    unit = scale_of(reference)
    return Moments((moments.mean - reference.mean) / unit, moments.variance / unit**2)


def scale_of(reference: Moments) -> Tensor:
    """The unit of `relative_to`: standard deviation per channel (D,), floored for dead channels."""
    floor = SCALE_FLOOR * reference.variance.mean() + torch.finfo(reference.variance.dtype).tiny
    return reference.variance.clamp_min(floor).sqrt()
