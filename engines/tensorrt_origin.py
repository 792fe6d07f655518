"""What an engine was built for, and whether that is here: asked before anything of it is deserialized."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.build_options import build_command
from engines.tensorrt_api import Gpu, Product, gpu_here
from toolchain.artifacts import Artifact
from toolchain.errors import ArtifactError, BackendError

RECORD = "built_for"
"""Its place in the sidecar's metadata."""


@dataclass(frozen=True)
class Origin:
    """What the sidecar of an engine tells of its build.

    Attributes:
        engine: the file.
        product: that built it.
        version: of the product.
        model: name of the ONNX file.
        gpu: that the builder built on and for; None where it needs none.
        parameters: as `BuildOptions.parameters` recorded them.
    """

    engine: Path
    product: Product
    version: str
    model: str
    gpu: Gpu | None
    parameters: Mapping[str, Any]

    @property
    def targets(self) -> tuple[str, ...]:
        """GPU architectures that it was built for by name."""
        return tuple(self.parameters["targets"])

    def is_target(self, gpu: Gpu) -> bool:
        """Whether it was built for this GPU by name."""
        return gpu.sm in {target.lower() for target in self.targets}

    @property
    def hardware_compatibility(self) -> str:
        """As in `BuildOptions`."""
        return str(self.parameters["hardware_compatibility"])

    def require(self, version: str, gpu: Gpu, *, fits: bool) -> None:
        """Refuse a runtime or a GPU that the engine was not built for.

        Args:
            version: of the product, here.
            gpu: here.
            fits: whether the engine is for this GPU.

        Raises:
            BackendError: it is not for this version or GPU; says for which, and how to build it again.
        """
        if fits and self._runs_in(version):
            return
        here = f"{self.product.name} {version} on {gpu}"
        raise BackendError(f"{self.engine} was built for {self}, and this is {here}: {self.remedy(gpu)}.")

    def remedy(self, gpu: Gpu) -> str:
        """What to do where it does not run on this GPU: the build of before, for this GPU where it was for others."""
        targets = self.targets if not self.targets or self.is_target(gpu) else (gpu.sm,)
        command = build_command(self.model, self.engine, self.product.backend, self.parameters, targets)
        return f"build it again with `{command}`"

    def __str__(self) -> str:
        """`TensorRT 10.13.0.35 on NVIDIA L4 (SM89)`."""
        where = ", ".join(t.upper() for t in self.targets) or (self.gpu if self.gpu else "")
        if self.hardware_compatibility != "none":
            where = f"{where} with hardware compatibility {self.hardware_compatibility}"
        return f"{self.product.name} {self.version}{f' on {where}' if where else ''}"

    def _runs_in(self, version: str) -> bool:
        if version == self.version:
            return True
        if not self.parameters["version_compatible"]:
            return False
        built, here = ([int(number) for number in re.findall(r"\d+", text)[:3]] for text in (self.version, version))
        # Later releases of the same major version, and 10.x in 11.x (TensorRT's support matrix, "Engine Portability").
        return here >= built and (built[0], here[0]) in {(built[0], built[0]), (10, 11)}


def origin_record(product: Product, version: str, model: Path, *, on_gpu: bool) -> dict[str, Any]:
    """What the sidecar keeps of a build on this machine, and on its GPU where the builder needs one."""
    gpu = gpu_here() if on_gpu else None
    return {"product": product.name, "version": version, "model": model.name, "gpu": asdict(gpu) if gpu else None}


def is_for_another_gpu(artifact: Artifact) -> bool:
    """Whether an engine was built on and for a GPU that is not here: built again, it would be another engine."""
    record = artifact.metadata.get(RECORD, {}).get("gpu")
    if record is None:
        return False
    built_on, here = Gpu(**record), gpu_here()
    return here is None or (here.name, here.capability) != (built_on.name, built_on.capability)


def origin_of(artifact: Artifact, product: Product) -> Origin:
    """What an engine was built for.

    Raises:
        ArtifactError: its sidecar does not say.
    """
    try:
        record = artifact.metadata[RECORD]
        gpu = Gpu(**record["gpu"]) if record["gpu"] else None
        return Origin(artifact.path, product, record["version"], record["model"], gpu, artifact.parameters)
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"The sidecar of {artifact.path} does not say what it was built for: build it again with "
            f"`lctr build MODEL.onnx --backend {product.backend} -o {artifact.path}`."
        ) from error
