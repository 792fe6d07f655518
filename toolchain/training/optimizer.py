"""AdamW with a rate of its own for each kind of parameter and each depth."""

from torch import Tensor
from torch.optim import AdamW

from toolchain.model.lctr import Lctr
from toolchain.training.recipes import Schedule

ROUTING_PATH = "conv3x3.", "CDM._routing_fn_two."
"""Parameters that act on the logits through the routing alone."""
EMBEDDINGS = "cls_token", "pos_embed"


def adamw(model: Lctr, schedule: Schedule) -> AdamW:
    """An optimizer of the parameters that require a gradient; `set_rate` gives its groups their learning rates."""
    groups: dict[tuple[bool, bool, int], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name not in EMBEDDINGS
            key = decays, name.startswith(ROUTING_PATH), _below_head(name, model.preset.depth)
            groups.setdefault(key, []).append(parameter)
    return AdamW(
        [
            {
                "params": parameters,
                "weight_decay": schedule.weight_decay if decays else 0.0,
                "factor": (schedule.routing_rate if routes else 1.0) * schedule.layer_decay**below,
            }
            for (decays, routes, below), parameters in groups.items()
        ],
        lr=schedule.learning_rate,
    )


def set_rate(optimizer: AdamW, schedule: Schedule, epochs_done: float) -> None:
    """The learning rate of each group after `epochs_done` epochs, which need not be whole."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.learning_rate * group["factor"] * schedule.rate(epochs_done)


def _below_head(name: str, depth: int) -> int:
    """How many layers of the backbone a parameter's output passes on its way, its own included; 0: head and norm."""
    kind, _, rest = name.partition(".")
    if kind == "blocks":
        return depth - int(rest.partition(".")[0])
    return depth + 1 if kind in ("patch_embed", *EMBEDDINGS) else 0
