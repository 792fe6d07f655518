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


TAPS = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 1, 0]], [[0, 1, 0], [0, 1, 0], [0, 0, 1]]])
"""Of each of the two rows (or columns) that come of one, [tap on the large grid, row of the small grid it falls on]."""


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
        normalized: Tensor = self.normalize(features)
        # In the features' type: under autocast float32 looked up here would make all that follows float32.
        scale, shift = (each(labels).to(normalized.dtype)[:, :, None, None] for each in (self.scale, self.shift))
        return torch.addcmul(shift, normalized, scale)


class DoublingConvolution(nn.Conv2d):
    """Nearest-neighbour up-sampling by two, then a convolution of three by three taps, which the grid's edge pads.

    Up-sampled neighbours are equal: so each of the four pixels that come of one is a convolution of the small grid, in
    which taps that fall on equal values are summed first. The large grid of all channels never exists, which is three
    times as fast on a CPU; and unlike `interpolate`'s, the gradient is summed in a fixed order on a GPU.
    """

    taps: Tensor
    bias: Tensor

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs, 3, padding=1)
        self.register_buffer("taps", TAPS)

    def forward(self, features: Tensor) -> Tensor:
        """(B, K, h, w) -> (B, O, 2h, 2w)."""
        weight = torch.einsum("yik,xjl,ocij->oyxckl", self.taps, self.taps, self.weight).flatten(0, 2)
        pixels = F.conv2d(features, weight, self.bias.repeat_interleave(4), padding=1)
        return F.pixel_shuffle(pixels, 2)


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
        # Rounded up: what is too much is cut off at the end.
        self.start = -(-image_size // 2**config.doublings)
        self.linear = nn.Linear(config.latent, config.widths[0] * self.start**2)
        outputs = (*config.widths[1:], 3)
        self.convolutions = nn.ModuleList(
            DoublingConvolution(i, o) if stage < config.doublings else nn.Conv2d(i, o, 3, padding=1)
            for stage, (i, o) in enumerate(zip(config.widths, outputs, strict=True))
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
            features = convolution(features)
        colours = torch.tanh(centre_cropped(features, self.image_size).float())
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


def centre_cropped(features: Tensor, size: int) -> Tensor:
    """(B, K, h, w) -> (B, K, size, size), h and w at least `size`.

    The surplus is less than one start cell; cutting it keeps the pixels, where a resize would blur all of them.
    """
    top, left = (features.shape[2] - size) // 2, (features.shape[3] - size) // 2
    return features[:, :, top : top + size, left : left + size]
