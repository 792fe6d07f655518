"""What a user may name with `--guide guide_factories:NAME`: a network with BatchNorm, and what is none."""

import torch
from torch import Tensor, nn

CLASSES, SIZE = 4, 16
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
NUMBER = 3


class Cnn(nn.Module):
    """Two convolutions with BatchNorm: (B, 3, 16, 16) and no other size -> (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16 * 4 * 4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.bn1(self.conv1(images)))
        return self.fc(torch.relu(self.bn2(self.conv2(features))).flatten(1))


def cnn() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Cnn()
        network.train()
        # Statistics that a training could have left.
        network(torch.randn(64, 3, SIZE, SIZE))
        return network


def other_cnn() -> nn.Module:
    network = cnn()
    with torch.no_grad():
        network.fc.bias += 1
    return network


def maps() -> nn.Module:
    return nn.BatchNorm2d(3)


def without_batchnorm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES))


def words() -> list[str]:
    return ["no", "network"]


def broken() -> nn.Module:
    raise OSError("the weights are gone")
