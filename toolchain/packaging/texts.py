"""The files of a package that are text: templates filled in, and what the card says."""

import json
from pathlib import Path
from string import Template
from textwrap import fill

from toolchain.card import ModelCard

TEMPLATES = Path(__file__).parent.parent / "templates" / "package"
SCRIPT = "run.py.txt"
PARTS = {
    "onnxruntime": "onnxruntime.py.txt",
    "tensorrt": "tensorrt.py.txt",
    "tensorrt-rtx": "tensorrt_rtx.py.txt",
    "triton": "triton.py.txt",
}
"""Where a script computes -> its imports, a blank line, and what defines `infer`."""


def filled(template: str, **values: object) -> str:
    """A template with every `$name` in it replaced."""
    return Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)


def inference(where: str, **values: object) -> tuple[str, str]:
    """The imports and the function `infer` of a script, for a key of `PARTS`; `values` replace its `$name`s."""
    imports, rest = filled(PARTS[where], **values).strip().split("\n\n", 1)
    return imports, rest.strip()


def script(where: str, labels: str, **values: object) -> str:
    """The program that finds the object in images, without this package.

    Args:
        where: as for `inference`.
        labels: path of the class names from the script's folder.
        values: as for `inference`.
    """
    imports, infer = inference(where, **values)
    return filled(SCRIPT, imports=imports, infer=infer, labels=labels)


def paragraph(*sentences: str) -> str:
    """Sentences as lines of 120 characters; an address is not cut."""
    return fill(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False)


def write_card(card: ModelCard, folder: Path) -> None:
    """`preprocessing.json`: all of the card but the class names, numbers as numbers."""
    metadata = card.to_metadata()
    record = {**json.loads(metadata["preprocessing"]), "tau": card.tau, "protocol": card.protocol}
    (folder / "preprocessing.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def write_labels(card: ModelCard, folder: Path) -> None:
    """`labels.txt`: a class name a line, in the order of the logits."""
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in card.class_names), encoding="utf-8")


def preprocessing_in_words(card: ModelCard) -> str:
    """What becomes of an image before it is the network's input, one step a line."""
    window = card.preprocessing
    size = window.image_size
    resize = (
        f"resize the short side to {window.resize} pixels, bilinear; cut the {size} x {size} pixels in the centre out"
        if window.resize
        else f"resize the whole image to {size} x {size} pixels, bilinear"
    )
    mean, std = ("(" + ", ".join(f"{value:g}" for value in values) + ")" for values in (window.mean, window.std))
    return f"1. RGB; {resize}.\n2. `(pixel / 255 - mean) / std`, mean {mean}, std {std}; channels first, float32."
