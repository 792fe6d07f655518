"""The class-conditional generator: noise and a class in, an image of valid pixels out (arXiv:2109.04186; spec/fdda.md).

`PAPER` is the published one. `FAST` exists to calibrate on two CPU cores: smaller, and the last BatchNorm learns a
contrast per class. The published one is not affine: once tanh saturates, hardly a pixel is then further than one
deviation from the mean, and neither black nor white ever reaches the network. In both, and not in the release, what
leaves the generator are pixels within black and white.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.teacher import PerChannel

CBN_EPS = 0.8
LEAK = 0.2
MEAN, STD = 0.5, 0.25
"""Of the pixels of images, about, where a network's normalization says nothing of them: some only scale."""
TELLING_MEANS, TELLING_STDS = (0.1, 0.9), (0.1, 0.5)
"""Within these a normalization is taken for the mean and deviation of images."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes.

    Attributes:
        latent: length of the noise vector z.
        widths: channels of the start grid and after each convolution but the last.
        doublings: the first convolutions, each of which follows an up-sampling by two; the start grid has side
            S / 2^doublings.
        contrast: learn scale and shift of the colours per class, after the last convolution.
    """

    latent: int
    widths: tuple[int, ...]
    doublings: int
    contrast: bool


PAPER = GeneratorConfig(latent=100, widths=(128, 128, 64), doublings=2, contrast=False)
FAST = GeneratorConfig(latent=100, widths=(64, 64, 32), doublings=3, contrast=True)


class ConditionalBatchNorm(nn.Module):
    """BatchNorm whose scale and shift are looked up per class."""

    def __init__(self, channels: int, num_classes: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.normalize = nn.BatchNorm2d(channels, eps, affine=False, track_running_stats=False)
        self.scale = nn.Embedding(num_classes, channels)
        self.shift = nn.Embedding(num_classes, channels)
        # N(1, 0.02) as usual for conditional normalization: near the identity, yet classes differ from the start.
        nn.init.normal_(self.scale.weight, 1, 0.02)
        nn.init.zeros_(self.shift.weight)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """(B, K, h, w), (B,) -> (B, K, h, w)."""
        scale: Tensor = self.scale(labels)
        shift: Tensor = self.shift(labels)
        normalized: Tensor = self.normalize(features)
        return normalized * scale[:, :, None, None] + shift[:, :, None, None]


class Generator(nn.Module):
    """z (B, latent) and labels (B,) -> images (B, 3, S, S) in the normalized space of the teacher.

    Its BatchNorms always use the batch at hand: a generator trained for minutes has no running statistics to trust.

    Args:
        config: sizes.
        num_classes: C.
        image_size: S, pixels; any.
        mean: per RGB channel, of pixels in [0, 1]: the teacher's normalization.
        std: likewise.
    """

    mean: Tensor
    std: Tensor
    middle: Tensor
    slope: Tensor

    def __init__(
        self,
        config: GeneratorConfig,
        num_classes: int,
        image_size: int,
        mean: PerChannel,
        std: PerChannel,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.doublings = config.doublings
        # Rounded up: what is too much is cut off at the end.
        self.start = -(-image_size // 2**config.doublings)
        self.linear = nn.Linear(config.latent, config.widths[0] * self.start**2)
        outputs = (*config.widths[1:], 3)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in zip(config.widths, outputs, strict=True)
        )
        self.norms = nn.ModuleList(
            ConditionalBatchNorm(width, num_classes, CBN_EPS if stage else 1e-5)
            for stage, width in enumerate(config.widths)
        )
        self.contrast = ConditionalBatchNorm(3, num_classes) if config.contrast else None
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        middle, spread = zip(*(_colours(*channel) for channel in zip(mean, std, strict=True)), strict=True)
        self.register_buffer("middle", torch.tensor(middle).view(3, 1, 1))
        self.register_buffer("slope", torch.tensor(spread).view(3, 1, 1) / (self.middle * (1 - self.middle)))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images in which every pixel lies within black and white."""
        features = self.linear(z).unflatten(1, (-1, self.start, self.start))
        for stage, (norm, convolution) in enumerate(zip(self.norms, self.convolutions, strict=True)):
            features = norm(features, labels)
            if stage:
                features = F.leaky_relu(features, LEAK)
            features = convolution(doubled(features) if stage < self.doublings else features)
        colours = torch.tanh(centre_cropped(features, self.image_size))
        images = self.contrast(colours, labels) if self.contrast else F.batch_norm(colours, None, None, training=True)
        normalized: Tensor = (self.pixels(images) - self.mean) / self.std
        return normalized

    def pixels(self, images: Tensor) -> Tensor:
        """Images in units of their colours, 0 for the mean and 1 for one deviation, as pixels in [0, 1].

        A sigmoid with the value and slope of the affine map `mean + std * x` at x = 0. A clamp would agree with that
        map further out, but passes no gradient from a pixel beyond black or white, which then stays there.
        """
        return torch.sigmoid(torch.logit(self.middle) + self.slope * images)


def _colours(mean: float, std: float) -> tuple[float, float]:
    """Mean and deviation of a channel's pixels, as the network's normalization tells them, or else about."""
    low, high = TELLING_MEANS
    least, most = TELLING_STDS
    return (mean, std) if low <= mean <= high and least <= std <= most else (MEAN, STD)


def doubled(features: Tensor) -> Tensor:
    """Nearest-neighbour up-sampling by two: (B, K, h, w) -> (B, K, 2h, 2w).

    By copying, not `interpolate`: the gradient of the latter is summed in no fixed order on a GPU.
    """
    batch, channels, height, width = features.shape
    copied = features[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return copied.reshape(batch, channels, 2 * height, 2 * width)


def centre_cropped(features: Tensor, size: int) -> Tensor:
    """(B, K, h, w) -> (B, K, size, size), h and w at least `size`.

    The surplus is less than one start cell; cutting it keeps the pixels, where a resize would blur all of them.
    """
    top, left = (features.shape[2] - size) // 2, (features.shape[3] - size) // 2
    return features[:, :, top : top + size, left : left + size]
