"""The guide: a small residual network with BatchNorm, trained beside a localizer to show generated images the way.

A localizer has no BatchNorm, so the published method (spec/fdda.md, route 1) finds no running statistics in it. A
guide of the same classes has them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolchain.errors import chosen


@dataclass(frozen=True)
class GuidePreset:
    """Sizes.

    Attributes:
        name: of the preset.
        widths: channels of the stem and of each stage; the stem and each stage halve the side.
        blocks: residual blocks of a stage.
    """

    name: str
    widths: tuple[int, ...]
    blocks: int


GUIDE_PRESETS = {
    preset.name: preset
    for preset in (
        GuidePreset("guide-nano", widths=(16, 32, 64, 96), blocks=1),
        GuidePreset("guide-small", widths=(32, 64, 128, 256), blocks=2),
    )
}
LARGEST_FOR_NANO = 112
"""Side of the images, in pixels, up to which the smaller guide is used."""


def guide_preset_named(name: str) -> GuidePreset:
    """The preset called `name`.

    Raises:
        UsageError: there is none.
    """
    return chosen("guide", name, GUIDE_PRESETS)


def guide_preset_for(image_size: int) -> GuidePreset:
    """The preset for images of this side, in pixels."""
    return GUIDE_PRESETS["guide-nano" if image_size <= LARGEST_FOR_NANO else "guide-small"]


class ResidualBlock(nn.Module):
    """ResNet's basic block (He et al. 2016): (B, K, h, w) -> (B, K', h / stride, w / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Two convolutions beside a shortcut."""
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(features)))))
        return torch.relu(branch + self.shortcut(features))


class Guide(nn.Module):
    """Normalized images (B, 3, S, S), S any -> logits (B, C).

    Args:
        preset: sizes.
        num_classes: C.
    """

    def __init__(self, preset: GuidePreset, num_classes: int) -> None:
        super().__init__()
        self.preset = preset
        stem = preset.widths[0]
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        stages = zip(preset.widths, preset.widths[1:], strict=False)
        self.stages = nn.Sequential(*(_stage(inputs, outputs, preset.blocks) for inputs, outputs in stages))
        self.fc = nn.Linear(preset.widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        logits: Tensor = self.fc(self.stages(self.stem(images)).mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    first = ResidualBlock(inputs, outputs, 2)
    return nn.Sequential(first, *(ResidualBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
