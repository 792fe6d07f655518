"""What the student is driven by: the labels, and the teacher's soft answers."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Distillation(NamedTuple):
    """A loss and its parts, each a scalar.

    Attributes:
        total: `cross_entropy + weight x T^2 x divergence`.
        cross_entropy: against the labels, mean over images.
        divergence: KL(teacher || student) of the answers at temperature T, mean over images *and classes*.
    """

    total: Tensor
    cross_entropy: Tensor
    divergence: Tensor


def distillation(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, weight: float
) -> Distillation:
    """`CE + alpha T^2 KL` of spec/fdda.md.

    The published code divides the divergence by the number of classes, too (torch's default reduction), and alpha = 20
    was chosen with that; so it is here.

    Args:
        student: its logits (B, C).
        teacher: its logits (B, C).
        labels: (B,).
        temperature: T, that both logits are divided by.
        weight: alpha.
    """
    cross_entropy = F.cross_entropy(student, labels)
    answer, expected = (logits.div(temperature).log_softmax(1) for logits in (student, teacher))
    # Not reduction="mean", which torch warns will be the mean over images alone one day.
    divergence = F.kl_div(answer, expected, reduction="none", log_target=True).mean()
    return Distillation(cross_entropy + weight * temperature**2 * divergence, cross_entropy, divergence)
