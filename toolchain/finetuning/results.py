"""What a fine-tuning leaves: files beside each other, and what says that they belong together."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain import quantization
from toolchain.artifacts import Artifact, Made, code_version, load, reusable, seal, sha256_of, sidecar_of

NETWORK = "network"
"""Kind of a tuned checkpoint that is no localizer."""
CODE = ("toolchain/finetuning", "toolchain/model", "exporters")


@dataclass(frozen=True)
class Finetuned:
    """A finished fine-tuning.

    Attributes:
        checkpoint: tuned parameters, float.
        quantized: the Q/DQ graph.
        deviation: of what ONNX Runtime makes of the graph from the student's logits, on the first images and over the
            largest logit; None: reused.
    """

    checkpoint: Made
    quantized: Made
    deviation: float | None


def float_of(output: Path) -> Path:
    """Where the float graph of a tuned checkpoint stands."""
    return output.with_suffix(".onnx")


def quantized_of(output: Path) -> Path:
    """Where its Q/DQ graph stands; the ranges are beside it."""
    return output.with_suffix(".int8.onnx")


def state_of(output: Path) -> Path:
    """Where a tuning that is not finished keeps what it needs to go on."""
    return output.with_name(f"{output.name}.state")


def log_of(output: Path) -> Path:
    """Where the table of its epochs stands."""
    return output.with_suffix(".log.csv")


@dataclass(frozen=True)
class Identity:
    """What a tuned checkpoint depends on."""

    kind: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Path]

    @property
    def text(self) -> str:
        """All of it, for a state that belongs to it alone."""
        return repr((self.parameters, {role: sha256_of(path) for role, path in self.inputs.items()}))

    def sealed(self, output: Path, facts: Mapping[str, Any]) -> Artifact:
        """The sidecar of a tuned checkpoint."""
        code = code_version(*CODE)
        return seal(output, self.kind, parameters=self.parameters, inputs=self.inputs, metadata=facts, code=code)

    def finished(self, output: Path) -> Finetuned | None:
        """What an earlier run of the same left, if it is whole."""
        code = code_version(*CODE)
        found = reusable(output, self.kind, parameters=self.parameters, inputs=self.inputs, code=code)
        whole = found and quantized_of(output).exists() and sidecar_of(quantized_of(output)).exists()
        if not found or not whole:
            return None
        return Finetuned(Made(found, True), Made(load(quantized_of(output), quantization.ONNX_INT8), True), None)
