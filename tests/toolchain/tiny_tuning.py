"""Networks to fine-tune, of a size that is exported in a second, and what ONNX Runtime makes of a file as it stands."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from toolchain.model.lctr import Lctr
from toolchain.model.presets import Preset

SIDE, CLASSES = 8, 3
ONE_BLOCK = Preset("one-block", image_size=16, patch_size=8, dim=8, depth=1, heads=2)


class TinyResNet(nn.Module):
    """A stem, a residual block whose shortcut reads the same tensor as its convolution, a BatchNorm that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv, self.norm = nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.shortcut = nn.Sequential(nn.Conv2d(4, 6, 1, 2, bias=False), nn.BatchNorm2d(6))
        self.last_norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(images)))
        x = torch.relu(self.norm(self.conv(x)) + self.shortcut(x))
        logits: Tensor = self.head(self.last_norm(x).mean((2, 3)))
        return logits


def tiny_resnet() -> nn.Module:
    """With statistics and factors that a training could have left; a factory, too."""
    torch.manual_seed(0)
    network = TinyResNet()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


def one_block() -> Lctr:
    """A localizer."""
    torch.manual_seed(0)
    return Lctr(ONE_BLOCK, CLASSES).eval()


def tiny_images(count: int = 24, side: int = SIDE) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((count, 3, side, side), np.float32))


def as_it_stands(path: Path, images: Tensor, *outputs: str) -> list[np.ndarray]:
    """Outputs of an ONNX file, node by node, without the optimizations that fuse Q/DQ into integer kernels."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run([*outputs], {"image": images.numpy()})
