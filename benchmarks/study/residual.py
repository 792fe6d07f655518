"""A BatchNorm network to be trained here: ResNet-20 (He et al. 2016, sec. 4.2), on `shapes` at half its size."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toolchain.artifacts import writing
from toolchain.data.pool import pool_from_dataset
from toolchain.data.shapes import IMAGE_SIZE, PREPROCESSING, Shapes
from toolchain.finetuning.images import Images
from toolchain.model.guide import ResidualBlock
from toolchain.preprocessing import Preprocessing

SIZE = IMAGE_SIZE // 2
WINDOW = Preprocessing(SIZE, SIZE, PREPROCESSING.mean, PREPROCESSING.std)
WIDTH = 8
"""Channels of the first stage, half of the published 16: a network with less to spare loses more at 4 bits."""
BLOCKS = 3
LEARNING_RATE = 4e-3
BATCH = 64


class ResNet20(nn.Module):
    """Normalized images (B, 3, S, S) -> logits (B, C); three stages of three blocks, the last two halve the side."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        widths = (WIDTH, WIDTH, 2 * WIDTH, 4 * WIDTH)
        blocks = [
            ResidualBlock(widths[stage] if block == 0 else widths[stage + 1], widths[stage + 1], stride)
            for stage, first in enumerate((1, 2, 2))
            for block, stride in enumerate((first, *[1] * (BLOCKS - 1)))
        ]
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        logits: Tensor = self.fc(self.blocks(self.stem(images)).mean((2, 3)))
        return logits


def shapes_at_half_size(split: str, count: int) -> Images:
    """The first images of a split, each pixel the mean of four, with their labels."""
    pool = pool_from_dataset(Shapes(split, count))
    halves = pool.images.reshape(count, SIZE, 2, SIZE, 2, 3).mean((2, 4)).round().astype(np.uint8)
    return Images(torch.from_numpy(WINDOW.normalize(halves)), torch.from_numpy(pool.labels))


def trained(path: Path, images: Images, epochs: int, device: str) -> ResNet20:
    """The network in evaluation mode, trained from seed 0 unless `path` holds it."""
    assert images.labels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResNet20(int(images.labels.max()) + 1)
    if path.exists():
        network.load_state_dict(load_file(path))
        return network.to(device).eval()
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.05)
    steps = epochs * (len(images.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    random = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(epochs):
        # A short last batch would move BatchNorm's statistics more than its images are worth.
        for rows in torch.randperm(len(images.labels), generator=random).split(BATCH)[: len(images.labels) // BATCH]:
            loss = F.cross_entropy(network(images.pixels[rows].to(device)), images.labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with writing(path) as temporary:
        save_file(network.state_dict(), temporary)
    return network.eval()


@torch.inference_mode()
def logits_of(network: nn.Module, images: Images) -> NDArray[np.float32]:
    """(N, C)."""
    device = next(network.parameters()).device
    return torch.cat([network(some.to(device)).cpu() for some in images.pixels.split(100)]).numpy()
