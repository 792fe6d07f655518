"""How the options of a build are written on the command line, in both directions.

Shapes are written as trtexec writes them (`image:1x3x224x224,mask:1x224`). Memory needs its unit: a bare number is MiB
to trtexec and GiB to others.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.backend import BatchProfile, BuildOptions, ShapeProfile, shape_text
from toolchain.errors import UsageError

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1}
SIZES = {"--min-shapes": "minimum", "--opt-shapes": "optimum", "--max-shapes": "maximum"}
SHAPE = re.compile(r"(?P<name>.+):(?P<sizes>\d+(x\d+)*)")
"""A name may hold colons itself."""


def build_options(
    *,
    batch: tuple[int, int, int] | None = None,
    min_shapes: str | None = None,
    opt_shapes: str | None = None,
    max_shapes: str | None = None,
    workspace: str | None = None,
    **others: Any,
) -> BuildOptions:
    """The options that a command line states.

    Args:
        batch: least, tuned and largest batch; None: not stated.
        min_shapes: least shape of each input, such as `image:1x3x224x224`; what is left out of the three is as the one
            that is tuned for.
        opt_shapes: the shape that is tuned for.
        max_shapes: largest.
        workspace: memory with its unit, such as `4GiB`.
        others: further fields of `BuildOptions`, as they are.

    Raises:
        UsageError: an option cannot be read, or two contradict each other.
    """
    shapes = shape_profiles(min_shapes, opt_shapes, max_shapes)
    if batch is not None and shapes:
        raise UsageError("--batch and --opt-shapes contradict each other: shapes include the batch, leave --batch out.")
    return BuildOptions(
        batch=BatchProfile() if batch is None else BatchProfile(*batch),
        shapes=shapes,
        workspace=None if workspace is None else memory(workspace),
        **others,
    )


def memory(text: str) -> int:
    """Bytes of `4GiB`, `512MiB`, `64KiB` or `4096B`.

    Raises:
        UsageError: no unit, or no such number.
    """
    if text.isdecimal():
        raise UsageError(
            f"--workspace {text} has no unit, and tools differ (MiB to trtexec, GiB to Ultralytics): "
            f"write {text}MiB or {text}GiB."
        )
    found = re.fullmatch(r"([1-9]\d*)(GiB|MiB|KiB|B)", text)
    if found is None:
        raise UsageError(f"--workspace {text} is no amount of memory: write a whole number and its unit, such as 4GiB.")
    return int(found[1]) * UNITS[found[2]]


def shape_profiles(least: str | None, tuned: str | None, largest: str | None) -> dict[str, ShapeProfile]:
    """Input -> profile; empty where nothing is stated.

    Raises:
        UsageError: a shape cannot be read, no shape to tune for, or the three name different inputs.
    """
    stated = {option: text for option, text in zip(SIZES, (least, tuned, largest), strict=True) if text is not None}
    if not stated:
        return {}
    if tuned is None:
        raise UsageError(f"{next(iter(stated))} needs a shape to tune for: add --opt-shapes.")
    read = {SIZES[option]: _shapes(option, text) for option, text in stated.items()}
    inputs = read["optimum"]
    for option, size in SIZES.items():
        if odd := set(read.get(size, inputs)) ^ set(inputs):
            raise UsageError(f"{option} and --opt-shapes differ about '{min(odd)}': name the same inputs in both.")
    return {name: ShapeProfile(**{size: read.get(size, inputs)[name] for size in SIZES.values()}) for name in inputs}


def _shapes(option: str, text: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        found = SHAPE.fullmatch(part)
        if found is None:
            raise UsageError(f"{option} '{part}' is no shape: write an input and its sizes, such as image:1x3x224x224.")
        if found["name"] in shapes:
            raise UsageError(f"{option} names '{found['name']}' twice: give each input one shape.")
        shapes[found["name"]] = tuple(int(size) for size in found["sizes"].split("x"))
    return shapes


def build_command(
    model: str, engine: Path, backend: str, parameters: Mapping[str, Any], targets: tuple[str, ...] | None = None
) -> str:
    """The command that builds an engine of these parameters again.

    Args:
        model: name of the ONNX file.
        engine: where the engine stands.
        backend: that built it.
        parameters: as `BuildOptions.parameters` recorded them.
        targets: in place of those recorded.
    """
    words = ["lctr", "build", model, "--backend", backend]
    for target in parameters["targets"] if targets is None else targets:
        words += ["--target", target]
    if parameters["shapes"]:
        for place, option in enumerate(SIZES):
            shapes = (f"{name}:{shape_text(profile[place])}" for name, profile in parameters["shapes"].items())
            words += [option, ",".join(shapes)]
    elif BatchProfile(*parameters["batch"]) != BatchProfile():
        words += ["--batch", *(str(size) for size in parameters["batch"])]
    if parameters["workspace"] is not None:
        words += ["--workspace", _memory_text(parameters["workspace"])]
    if parameters["optimization_level"] is not None:
        words += ["--optimization-level", str(parameters["optimization_level"])]
    if parameters["version_compatible"]:
        words += ["--version-compatible"]
    if parameters["hardware_compatibility"] != "none":
        words += ["--hardware-compatibility", parameters["hardware_compatibility"]]
    if parameters["timing_cache"]:
        words += ["--timing-cache", parameters["timing_cache"]]
    if parameters["calibration_cache"]:
        words += ["--calibration-cache", parameters["calibration_cache"]["name"]]
    return shlex.join([*words, "-o", str(engine)])


def _memory_text(size: int) -> str:
    unit = next(unit for unit, factor in UNITS.items() if size % factor == 0)
    return f"{size // UNITS[unit]}{unit}"
