"""CutMix with rectangles aligned to tokens and anchored at a corner, of pixels or of what blocks made of them.

Without it the class map of a token only has to know the image's class, which every token can read off the class token:
maps become uniform. With it one image holds two classes, and each token must answer for what it sees itself.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toolchain.model.lctr import Cues, Halfway


@dataclass(frozen=True)
class CutMix:
    """Rectangles of tokens pasted from one image of the batch into another.

    Attributes:
        probability: share of the batches that are mixed.
        sides: least and largest side of a rectangle, as fractions of the grid.
    """

    probability: float = 0.8
    sides: tuple[float, float] = (0.36, 0.65)

    def draw(self, grid: int, generator: torch.Generator) -> Tensor | None:
        """(grid, grid) bool, true where the other image shows; None for a batch left as it is."""
        if torch.rand((), generator=generator) >= self.probability:
            return None
        low, high = (round(s * grid) for s in self.sides)
        height, width = torch.randint(low, high + 1, (2,), generator=generator).tolist()
        mask = torch.zeros(grid, grid, dtype=torch.bool)
        mask[:height, :width] = True
        flips = [axis for axis in (0, 1) if torch.rand((), generator=generator) < 0.5]
        return mask.flip(flips)


def mixed_images(images: Tensor, others: Tensor, mask: Tensor) -> Tensor:
    """Whole patches of `others` (B, 3, S, S) in `images` of the same shape, where the mask (h, w) is true."""
    patch = images.shape[-1] // mask.shape[-1]
    return torch.where(mask.repeat_interleave(patch, 0).repeat_interleave(patch, 1), others, images)


def mixed_cues(cues: Cues, others: Cues, mask: Tensor) -> Cues:
    """The same of what the whole backbone made of the images."""
    return Cues(*(torch.where(mask, other, own) for own, other in zip(cues, others, strict=True)))


def mixed_halfway(halfway: Halfway, others: Halfway, mask: Tensor) -> Halfway:
    """The same of what the first blocks made of the images; the class token has seen of each image what shows of it."""
    own, other = halfway.tokens, others.tokens
    patches = torch.where(mask.flatten()[:, None], other[:, 1:], own[:, 1:])
    classes = own[:, :1].lerp(other[:, :1], float(mask.float().mean()))
    return Halfway(torch.cat([classes, patches], 1), torch.where(mask, others.class_attention, halfway.class_attention))


def mixed_targets(labels: Tensor, others: Tensor, mask: Tensor | None, num_classes: int) -> tuple[Tensor, Tensor]:
    """Targets weighted by visible area (B, C), and the label of the larger part (B,)."""
    own = F.one_hot(labels, num_classes).float()
    if mask is None:
        return own, labels
    share = float(mask.float().mean())
    return own * (1 - share) + F.one_hot(others, num_classes).float() * share, labels if share < 0.5 else others
