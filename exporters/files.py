"""ONNX files: read whole or refused, written whole or not at all."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

from toolchain.errors import ModelError, first_line


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model in an ONNX file, checked.

    Raises:
        ModelError: no such file, truncated, or something else.
    """
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist: check the path.") from error
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path} is no whole ONNX model ({first_line(error)}): export it again.") from error
    return model


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write to a path that `artifacts.writing` gave.

    Raises:
        ModelError: the model exceeds what protobuf writes into one file.
    """
    try:
        path.write_bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise ModelError(f"the model is too large for one ONNX file ({error}): choose a smaller one.") from error


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """What travels in the model's `metadata_props`."""
    return {entry.key: entry.value for entry in model.metadata_props}
