"""A convolutional network with three BatchNorms, whose running statistics are those of `tiny_vit`'s images."""

import torch
from tiny_vit import CLASSES, labelled_images
from torch import Tensor, nn


class TinyCnn(nn.Module):
    """Any size: logits (B, 3). The last BatchNorm is one of vectors."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.bn3, self.fc = nn.BatchNorm1d(8), nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.bn1(self.conv1(images)))
        features = torch.relu(self.bn2(self.conv2(features)))
        return self.fc(self.bn3(features.mean((2, 3))))


LAYERS = ("bn1", "bn2", "bn3")


def tiny_cnn(seed: int = 0) -> TinyCnn:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TinyCnn()
    for norm in (model.bn1, model.bn2, model.bn3):
        norm.momentum = 1
    with torch.no_grad():
        model(labelled_images(20)[0])
    return model
