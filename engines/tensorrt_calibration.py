"""Implicit INT8, which TensorRT 10.x has and deprecates: ranges come from a cache beside the model, not from Q/DQ."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

from toolchain.errors import ArtifactError, UsageError

HEADER = re.compile(rb"TRT-\d+-EntropyCalibration2")
"""First line of a cache; the number is the version of the TensorRT that takes it."""


def read_cache(path: Path) -> bytes:
    """A calibration cache as `lctr quantize --cache` writes it.

    Raises:
        ArtifactError: the file cannot be read.
        UsageError: it is no such cache.
    """
    try:
        cache = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}): check the path.") from error
    if not HEADER.fullmatch(_first_line(cache)):
        raise UsageError(f"{path} is no calibration cache: write one with `lctr quantize --no-equalize --cache`.")
    return cache


def has_implicit_int8(trt: ModuleType) -> bool:
    """Whether this module still has the implicit mode."""
    return (
        hasattr(trt, "IInt8EntropyCalibrator2")
        and hasattr(trt.BuilderFlag, "INT8")
        and hasattr(trt.BuilderFlag, "FP16")
        and hasattr(trt.IBuilderConfig, "int8_calibrator")
        and hasattr(trt.IBuilderConfig, "set_calibration_profile")
    )


def calibrator(trt: ModuleType, cache: bytes) -> Any:
    """Serves the cache, and has no images.

    A builder that drops the cache, because it has another version, asks for images: `dropped` tells that it did.
    """

    class Cache(trt.IInt8EntropyCalibrator2):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)
            self.dropped = False

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            self.dropped = True

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, written: Any) -> None:
            """The file is the user's."""

    return Cache()


def dropped(cache: bytes, name: str, version: str) -> UsageError:
    """The error for a cache that the builder of this version does not take."""
    release = ".".join(version.split(".")[:3])
    return UsageError(
        f"The calibration cache ({_first_line(cache).decode()}) is not for {name} {version}: write it again with "
        f"`lctr quantize --no-equalize --cache FILE --cache-version {release}`."
    )


def _first_line(cache: bytes) -> bytes:
    return cache.partition(b"\n")[0].strip()
