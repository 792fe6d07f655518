"""CDM, the cue digging module: LCTR's classifier, one convolution whose kernel is mixed per image (spec/lctr.md)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = 9
"""Positions of a 3 x 3 kernel."""


class Routing(nn.Module):
    """Weights of the experts from average- and max-pooled features: (B, D, h, w) -> (B, G) in (0, 1)."""

    def __init__(self, dim: int, experts: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, experts)
        self.fc2 = nn.Linear(dim, experts)
        # Zero weights: every expert starts at sigmoid(0) = 1/2, far from the flat ends where routing dies.
        for layer in (self.fc, self.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Sigmoid of the sum of both pooled projections."""
        return torch.sigmoid(self.fc(features.mean((2, 3))) + self.fc2(features.amax((2, 3))))


class CueDiggingModule(nn.Module):
    """Class maps `X_CDM = Conv3x3(X_L; sum_g r_g W_g) + bias`.

    Convolution is linear in its kernel, so the experts' maps are mixed instead of their kernels. That needs no
    kernel per image: the whole batch is one convolution with constant weights, which INT8 can hold.
    """

    def __init__(self, dim: int, num_classes: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, num_classes, dim, 3, 3))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self._routing_fn_two = Routing(dim, experts)
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, features: Tensor, cues: Tensor) -> tuple[Tensor, Tensor]:
        """Class maps and routing.

        Args:
            features: `X_L` (B, D, h, w).
            cues: `X~` (B, D, h, w), from which the routing is computed.

        Returns:
            class maps (B, C, h, w) and routing weights (B, G).
        """
        routing = self._routing_fn_two(cues)
        experts, classes = self.weight.shape[:2]
        per_expert = F.conv2d(features, self.weight.flatten(0, 1), padding=1)
        per_expert = per_expert.reshape(-1, experts, classes, *features.shape[2:])
        maps = (per_expert * routing[:, :, None, None, None]).sum(1)
        return maps + self.bias[:, None, None], routing

    def logits(self, features: Tensor, cues: Tensor) -> tuple[Tensor, Tensor]:
        """What `pooled_logits` makes of the class maps, without them, and routing: (B, C), (B, G).

        Pooling and convolution are linear: the kernels meet one pooled vector of 9 D numbers instead of D h w features,
        which spares a training step the G C maps that it would only average. Arguments are those of `forward`.
        """
        routing = self._routing_fn_two(cues)
        experts, classes = self.weight.shape[:2]
        weights = pooling_weights(*features.shape[2:]).to(features.device)
        # Whatever autocast says, in float32: after the pooling it costs next to nothing.
        with torch.autocast(features.device.type, enabled=False):
            pooled = features.float().flatten(2) @ shifted_weights(weights).float().T
            per_expert = F.linear(pooled.flatten(1), self.weight.flatten(0, 1).flatten(1))
            mixed = (per_expert.reshape(-1, experts, classes) * routing.float()[:, :, None]).sum(1)
            return mixed + weights.sum().float() * self.bias, routing


def pooled_logits(class_maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C): the mean of a zero-padded 3 x 3 box filter (interior 1, edge 2/3, corner 4/9)."""
    return F.avg_pool2d(class_maps, 3, stride=1, padding=1).mean((2, 3))


def pooling_weights(high: int, wide: int) -> Tensor:
    """Share of each position in the logits: (h, w); interior 1, edge 2/3, corner 4/9, over h w.

    It is the mean of a zero-padded 3 x 3 box filter, seen from the pixel. The sum is the bias's share.
    """
    ones = torch.ones(1, 1, high, wide, dtype=torch.float64)
    return F.avg_pool2d(ones, 3, stride=1, padding=1)[0, 0] / (high * wide)


def shifted_weights(weights: Tensor) -> Tensor:
    """What each tap of a zero-padded 3 x 3 convolution contributes to its pooled output: (h, w) -> (9, h w).

    Tap (u, v) of position p reads p + (u - 1, v - 1): seen from the position that is read, the weights move the other
    way.
    """
    padded = F.pad(weights, (1, 1, 1, 1))
    high, wide = weights.shape
    return torch.stack(
        [padded[2 - u : 2 - u + high, 2 - v : 2 - v + wide].flatten() for u in range(3) for v in range(3)]
    )
