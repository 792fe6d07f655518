"""What a TensorRT engine takes and answers: names, types, shapes, and the shapes that its profile allows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.backend import Feeds, Input, check_feeds
from toolchain.errors import BackendError

Shape = tuple[int, ...]
PROFILE = 0
"""The optimization profile that a context starts with; our builds have this one."""


@dataclass(frozen=True)
class Tensor:
    """One input or output.

    Attributes:
        name: in the engine.
        dtype: of the array.
        shape: -1 where it is dynamic.
        least: smallest shape of an input that the profile allows; of an output `shape`.
        most: largest, likewise.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    least: Shape
    most: Shape

    def takes(self, array: NDArray[Any]) -> bool:
        """An input's type, dimensions and profile fit."""
        fits = array.ndim == len(self.shape) and all(
            low <= d <= high for low, d, high in zip(self.least, array.shape, self.most, strict=True)
        )
        return fits and array.dtype == self.dtype

    def as_input(self) -> Input:
        """An input as every session describes it."""
        sizes = enumerate(zip(self.least, self.most, strict=True))
        return Input(self.name, self.dtype, tuple(low if low == high else f"size {k}" for k, (low, high) in sizes))

    def wanted(self) -> str:
        """What an input takes, for a message."""
        if self.least == self.most:
            return f"{self.dtype}{list(self.most)}"
        return f"{self.dtype}{list(self.least)} to {self.dtype}{list(self.most)}, the engine's profile"


@dataclass(frozen=True)
class Tensors:
    """All of an engine, in its own order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def check(self, feeds: Feeds, source: Path) -> None:
        """Refuse feeds that the engine `source` does not take.

        Raises:
            BackendError: a name, type or shape is wrong; the right ones are told.
        """
        check_feeds(feeds, [t.name for t in self.inputs])
        for tensor in self.inputs:
            array = feeds[tensor.name]
            if not tensor.takes(array):
                raise BackendError(
                    f"Input '{tensor.name}' of {source} is {array.dtype}{list(array.shape)}: feed {tensor.wanted()}."
                )


def tensors_of(trt: ModuleType, engine: Any, source: Path) -> Tensors:
    """The inputs and outputs of a deserialized engine.

    Raises:
        BackendError: numpy lacks a type, or a tensor has to lie in host memory because its values are shapes.
    """
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise BackendError(f"'{name}' of {source} holds shapes, not data: export the model with its batch alone.")
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(_tensor(trt, engine, source, name, is_input=is_input))
    return Tensors(tuple(inputs), tuple(outputs))


def output_shapes(context: Any, outputs: Sequence[Tensor], source: Path) -> Mapping[str, Shape]:
    """The shapes that the context's input shapes lead to.

    Raises:
        BackendError: one depends on the data.
    """
    shapes = {t.name: tuple(context.get_tensor_shape(t.name)) for t in outputs}
    for name, shape in shapes.items():
        if any(d < 0 for d in shape):
            raise BackendError(
                f"Output '{name}' of {source} has a shape {list(shape)} that depends on the data: export it without."
            )
    return shapes


def _tensor(trt: ModuleType, engine: Any, source: Path, name: str, *, is_input: bool) -> Tensor:
    vendor_type = engine.get_tensor_dtype(name)
    try:
        dtype = np.dtype(trt.nptype(vendor_type))
    except TypeError as error:
        raise BackendError(
            f"'{name}' of {source} is {vendor_type.name}, which numpy lacks: export it with FP32 inputs and outputs."
        ) from error
    shape = tuple(engine.get_tensor_shape(name))
    if is_input and -1 in shape:
        least, _, most = (tuple(s) for s in engine.get_tensor_profile_shape(name, PROFILE))
        return Tensor(name, dtype, shape, least, most)
    return Tensor(name, dtype, shape, shape, shape)
