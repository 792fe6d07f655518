"""How every backend seals an engine with its sidecar and finds it again: one record, whoever built it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.backend import BuildOptions
from toolchain.artifacts import Artifact, code_version, load, reusable, seal
from toolchain.errors import BackendError

KIND = "engine"
OURS = ("backend", "built_for", "compiled", "products")
"""Sidecar metadata that `engines` writes; everything else came with `BuildOptions.metadata`."""


def sealed(
    model: Path, output: Path, backend: str, options: BuildOptions, facts: Mapping[str, Any] | None = None
) -> Artifact:
    """Write the sidecar of the finished engine at `output`; `facts` are what this backend found out about it."""
    # Through JSON once, so that the artifact returned equals the one that is loaded later.
    metadata = json.loads(json.dumps({**options.metadata, "backend": backend, **(facts or {})}))
    return seal(
        output,
        KIND,
        parameters=_parameters(backend, options),
        inputs={"model": model},
        metadata=metadata,
        code=code_version("engines"),
    )


def built(model: Path, output: Path, backend: str, options: BuildOptions) -> Artifact | None:
    """The engine at `output` if it was already built from exactly this: the build can be skipped."""
    return reusable(
        output,
        KIND,
        parameters=_parameters(backend, options),
        inputs={"model": model},
        code=code_version("engines"),
    )


def opened(engine: Path, backend: str) -> Artifact:
    """The sidecar of an engine that is whole and of this backend.

    Raises:
        ArtifactError: missing, changed, or no engine.
        BackendError: another backend built it.
    """
    artifact = load(engine, KIND)
    if (builder := artifact.metadata.get("backend")) != backend:
        raise BackendError(f"{engine} was built by the backend '{builder}', not by '{backend}': open it with that one.")
    return artifact


def session_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What travelled with the model: strings as they are, other values as JSON."""
    own = {k: v for k, v in metadata.items() if k not in OURS}
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in own.items()}


def _parameters(backend: str, options: BuildOptions) -> dict[str, Any]:
    # The metadata stands in the sidecar once; its hash here is enough to notice a change.
    content = json.dumps(dict(options.metadata), sort_keys=True)
    return {**options.parameters(), "backend": backend, "metadata": hashlib.sha256(content.encode()).hexdigest()}
