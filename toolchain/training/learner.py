"""The trained part of a localizer as one call, which is what data-parallel training can wrap."""

import torch
from torch import Tensor, nn

from toolchain.model.lctr import Classified, Cues, Halfway, Lctr
from toolchain.training.batches import Inputs


class Learner(nn.Module):
    """Images, or what frozen blocks made of them, to logits and routing.

    Args:
        model: trained in place.
        frozen_blocks: blocks that `Halfway` inputs have passed.
        bf16: compute in bfloat16 where torch's autocast deems it safe.
    """

    def __init__(self, model: Lctr, frozen_blocks: int, bf16: bool) -> None:
        super().__init__()
        self.model = model
        self._frozen_blocks = frozen_blocks
        self._bf16 = bf16

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits (n, C) and routing weights (n, G), float32."""
        # Fabric's own mixed precision would round the inputs too, and class attention does not bear that.
        with torch.autocast(self.model.cls_token.device.type, torch.bfloat16, enabled=self._bf16):
            classified = self._classified(inputs)
        return classified.logits.float(), classified.routing.float()

    def _classified(self, inputs: Inputs) -> Classified:
        if isinstance(inputs, Halfway):
            return self.model.classify(self.model.cues_from(inputs, self._frozen_blocks))
        return self.model.classify(inputs if isinstance(inputs, Cues) else self.model.cues(inputs))
