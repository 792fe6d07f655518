"""What FDDA looks at in a transformer: patch tokens at the inputs of its LayerNorms (spec/fdda.md, route 2).

LayerNorm keeps no running statistics and its output has mean 0 and variance 1 whatever the image, so it is the *input*
of each LayerNorm, the residual stream, that is looked at.
"""

from collections.abc import Sequence

from torch import Tensor

from calib.observation import View
from toolchain.errors import ModelError


def token_view(layers: Sequence[str]) -> View:
    """A view of the patch tokens (B, N, D) that reach `layers`; the class token, index 0, is left out."""
    return View(tuple(layers), patch_tokens)


def attention_view(layers: Sequence[str], heads: int) -> View:
    """A view of what attention made of each patch, averaged over heads, (B, N, d).

    Args:
        layers: the linear layer behind each attention, whose input (B, 1+N, heads * d) holds the heads side by side.
        heads: of each attention.
    """

    def positions(layer: str, inputs: Tensor) -> Tensor:
        of_heads: Tensor = patch_tokens(layer, inputs).unflatten(2, (heads, -1))
        return of_heads.mean(2)

    return View(tuple(layers), positions)


def patch_tokens(layer: str, inputs: Tensor) -> Tensor:
    """(B, 1+N, D), class token first -> (B, N, D).

    Raises:
        ModelError: the input is no token sequence.
    """
    if inputs.ndim != 3 or inputs.shape[1] < 2:
        raise ModelError(
            f"module '{layer}' takes an input of shape {tuple(inputs.shape)}, not (batch, 1 + patches, channels): "
            "name LayerNorms of the residual stream."
        )
    return inputs[:, 1:]
