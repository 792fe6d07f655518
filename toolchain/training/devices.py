"""Which processes train together, and on what."""

import os

import torch
from lightning_fabric import Fabric

from toolchain.errors import UsageError

DEVICES = "cpu", "cuda"


def check_device(device: str) -> None:
    """Refuse what nothing can be trained on here.

    Raises:
        UsageError: no such device.
    """
    if device not in DEVICES:
        raise UsageError(f"--device {device} is unknown: give one of {', '.join(DEVICES)}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda needs an NVIDIA GPU and a CUDA build of torch, and there is none: use cpu.")


def fabric_for(device: str) -> Fabric:
    """This process's place in the training: alone, or one of those that `torchrun` started.

    Args:
        device: `cpu` or `cuda`; of several processes on a machine each takes a GPU of its own.

    Raises:
        UsageError: no such device, or too few of them.
    """
    check_device(device)
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if device == "cuda" and torch.cuda.device_count() < local:
        raise UsageError(
            f"{local} processes need as many GPUs, and there are {torch.cuda.device_count()}: lower --nproc-per-node."
        )
    # Precision is the learner's business.
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision="32-true",
    )
    fabric.launch()
    return fabric
