"""torch as a backend: runs a localizer's module beside the engines that it is compared with. It builds nothing.

A deployment machine has no torch, so nothing here loads it before a module is run.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from engines.backend import Availability, BuildOptions, Input, Session
from toolchain.artifacts import Artifact, gpu_description
from toolchain.errors import BackendError, BackendUnavailable
from toolchain.progress import Progress, silent

if TYPE_CHECKING:
    from torch import nn

    from engines.torch_session import TorchSession

EAGER, COMPILE = "eager", "compile"
CPU, CUDA = "cpu", "cuda"
FP32, FP16 = "fp32", "fp16"
PLAIN = (EAGER, CPU, FP32)
"""What a name leaves out."""
BUILDS_NOTHING = "torch runs checkpoints and builds no engine: name another backend."


@dataclass(frozen=True)
class TorchBackend:
    """torch, as a program would run the model without an engine; see `engines.backend.Backend`.

    Attributes:
        mode: `eager`, or `compile` for what Inductor makes of the whole module, a batch size at a time.
        device: `cpu` or `cuda`.
        precision: `fp32` or `fp16`, of the module that is run: whoever makes the module makes it so.
    """

    mode: str = EAGER
    device: str = CPU
    precision: str = FP32

    @property
    def name(self) -> str:
        """`torch`, and what is not plain behind it: `torch:compile:cuda:fp16`."""
        chosen = zip((self.mode, self.device, self.precision), PLAIN, strict=True)
        return ":".join(["torch", *(variant for variant, plain in chosen if variant != plain)])

    def availability(self) -> Availability:
        """It builds nothing. It runs where torch is, and on `cuda` where there is a GPU as well."""
        reason = self._lacking()
        return Availability(build=False, run=not reason, reason=reason or BUILDS_NOTHING)

    def build(self, model: Path, output: Path, options: BuildOptions, progress: Progress = silent) -> Artifact:
        """Refuse: BackendError."""
        raise BackendError(f"{model} is not built: {BUILDS_NOTHING}")

    def open(self, engine: Path) -> AbstractContextManager[Session]:
        """Refuse files: BackendError. What a checkpoint's weights belong to is known to `toolchain.localizer` alone."""
        raise BackendError(
            f"{self.name} runs a checkpoint, and {engine} is none: name the .safetensors it was made of, or another "
            "backend."
        )

    @contextmanager
    def session_from_module(
        self,
        module: "nn.Module",
        inputs: Sequence[Input],
        outputs: Sequence[str],
        metadata: Mapping[str, str],
        source: str,
    ) -> Iterator["TorchSession"]:
        """Run a module.

        Args:
            module: of this backend's precision; takes `inputs` in order, returns a tensor for each of `outputs`. It is
                moved to the device, and put into evaluation mode.
            inputs: with the batch first.
            outputs: their names.
            metadata: what the session hands on.
            source: what messages call the module.

        Raises:
            BackendUnavailable: torch, or the GPU, is not there.
        """
        self.require()
        from engines.torch_session import TorchSession

        session = TorchSession(
            module, inputs, outputs, metadata, source, device=self.device, compiled=self.mode == COMPILE
        )
        # This frame must not keep alive what the session lets go of.
        del module
        try:
            yield session
        finally:
            session.close()

    def require(self) -> None:
        """Refuse where this machine cannot run it.

        Raises:
            BackendUnavailable: with what is missing.
        """
        if reason := self._lacking():
            raise BackendUnavailable(f"{self.name} cannot run here: {reason}")

    def _lacking(self) -> str:
        if find_spec("torch") is None:
            return "torch is not installed: install lctr[compile]."
        if self.device == CUDA and gpu_description() is None:
            return "this machine has no NVIDIA GPU that nvidia-smi can see: leave :cuda out."
        return ""
