"""Images of noise: the rival that every other method must beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from calib.alignment import Alignment
from calib.synthesis import Drawn
from calib.teacher import Teacher
from toolchain.progress import Progress


@dataclass(frozen=True)
class Noise:
    """Standard-normal images in the network's normalized space; what lies beyond black or white becomes it.

    `calib.image_set.noise` is the same without that bound: an array can hold what no image file can.
    """

    alignment: Alignment | None = None
    missing = ("noise: neither network nor statistics have a part in these images",)

    def draw(self, teacher: Teacher, labels: Tensor, random: torch.Generator, progress: Progress) -> Drawn:
        """As many images as labels; they are of no class."""
        size = teacher.image_size
        images = teacher.pixels(torch.randn(len(labels), 3, size, size, generator=random).to(teacher.device))
        progress(len(labels), len(labels))
        return Drawn(images, None)
