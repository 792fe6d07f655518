"""Artifacts: a file or folder, and beside it `NAME.json` that says what it is and where it came from.

A reader sees a whole artifact or none: content is written under a temporary name and renamed. The sidecar holds the
hash of the content, so a file changed or cut short afterwards is recognized before it is used.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from toolchain import __version__
from toolchain.errors import ArtifactError

SCHEMA_VERSION = 1
RECORDED_PACKAGES = (
    *("torch", "onnx", "onnxruntime", "numpy", "polygraphy"),
    *("tensorrt_rtx_cu13", "tensorrt_cu13", "tensorrt_cu12", "tensorrt"),
)


@dataclass(frozen=True)
class Artifact:
    """What a sidecar records.

    Attributes:
        path: the file or folder described.
        kind: what it is: `model`, `statistics`, `synthetic`, `onnx`, `onnx-int8`, `engine`, ...
        sha256: hash of the content (of the sorted names and hashes, for a folder).
        size: bytes.
        parameters: of the command that made it.
        inputs: role -> kind and sha256 of each input.
        metadata: facts that later stages need (preprocessing, class names, tau, what was compiled).
        code: hash of the source that made it.
        versions: of the packages that made it.
        machine: CPU, GPU and driver that made it.
    """

    path: Path
    kind: str
    sha256: str
    size: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """An artifact, and whether it was already there."""

    artifact: Artifact
    reused: bool


def sidecar_of(path: Path) -> Path:
    """Where the sidecar of the artifact at `path` stands."""
    return path.with_name(path.name + ".json")


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes, or of the names and hashes of the files in a folder, in name order.

    Raises:
        ArtifactError: there is nothing at `path`.
    """
    if path.is_dir():
        members = sorted(p for p in path.rglob("*") if p.is_file())
        listing = "\n".join(f"{m.relative_to(path).as_posix()} {sha256_of(m)}" for m in members)
        return hashlib.sha256(listing.encode()).hexdigest()
    try:
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}): check the path.") from error


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())


@contextmanager
def writing(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A temporary path (for a folder: an empty one) that becomes `path` when the block ends without an error.

    Raises:
        ArtifactError: the place cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written ({error.strerror}): choose another output path.") from error
    temporary = room / path.name
    try:
        if folder:
            temporary.mkdir()
        yield temporary
        if folder and path.is_dir():
            # A folder cannot be renamed over one that holds files: the old one steps aside first.
            path.replace(room / "replaced")
        try:
            temporary.replace(path)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be written ({error.strerror}): choose another output path.") from error
    finally:
        shutil.rmtree(room, ignore_errors=True)


def seal(
    path: Path,
    kind: str,
    *,
    parameters: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Path] | None = None,
    metadata: Mapping[str, Any] | None = None,
    code: str = "",
) -> Artifact:
    """Write the sidecar of the finished content at `path`."""
    artifact = Artifact(
        path=path,
        kind=kind,
        sha256=sha256_of(path),
        size=size_of(path),
        parameters=dict(parameters or {}),
        inputs={role: identity(p) for role, p in (inputs or {}).items()},
        metadata=dict(metadata or {}),
        code=code,
        versions=versions(),
        machine=machine(),
    )
    record = {"schema": SCHEMA_VERSION, **asdict(artifact), "path": path.name}
    with writing(sidecar_of(path)) as temporary:
        temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return artifact


def identity(path: Path) -> dict[str, str]:
    """Kind and hash of an input: the sidecar's kind where there is one, `file` or `folder` otherwise."""
    kind = read_sidecar(path).kind if sidecar_of(path).exists() else ("folder" if path.is_dir() else "file")
    return {"kind": kind, "sha256": sha256_of(path)}


def read_sidecar(path: Path) -> Artifact:
    """The sidecar of `path` as recorded; the content is not checked.

    Raises:
        ArtifactError: no sidecar, or one that cannot be read.
    """
    sidecar = sidecar_of(path)
    try:
        record = json.loads(sidecar.read_text())
        if record.pop("schema") != SCHEMA_VERSION:
            raise ArtifactError(f"{sidecar} has a schema this version does not know: make the artifact again.")
        return Artifact(**{**record, "path": path})
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path} has no sidecar {sidecar.name}: its origin is unknown; copy the sidecar with it or make it again."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{sidecar} is no sidecar of ours: make {path.name} again.") from error


def load(path: Path, *kinds: str) -> Artifact:
    """The artifact at `path`, its content checked against its sidecar.

    Raises:
        ArtifactError: content or sidecar missing or changed, or the kind is none of `kinds`.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: check the path.")
    artifact = read_sidecar(path)
    if kinds and artifact.kind not in kinds:
        raise ArtifactError(f"{path} is of kind '{artifact.kind}', not {' or '.join(kinds)}: name another file.")
    if sha256_of(path) != artifact.sha256:
        raise ArtifactError(f"{path} is not what its sidecar describes (sha256 differs): make it again.")
    return artifact


def reusable(
    path: Path, kind: str, *, parameters: Mapping[str, Any], inputs: Mapping[str, Path], code: str
) -> Artifact | None:
    """The artifact at `path` if it is whole and was made from exactly these inputs, parameters and code."""
    try:
        artifact = load(path, kind)
    except ArtifactError:
        return None
    same = (
        artifact.parameters == json.loads(json.dumps(dict(parameters)))
        and artifact.inputs == {role: identity(p) for role, p in inputs.items()}
        and artifact.code == code
        and artifact.versions == versions()
    )
    return artifact if same else None


@cache
def code_version(*packages: str) -> str:
    """Hash of Python source of ours, so that a stage is redone when its code changed.

    Args:
        packages: folders or files under the folder of this project, such as `calib`, `toolchain/boxes.py`.
    """
    root = Path(__file__).resolve().parent.parent
    files = sorted(f for p in packages for f in ((root / p).rglob("*.py") if (root / p).is_dir() else [root / p]))
    listing = "\n".join(f"{f.relative_to(root).as_posix()} {sha256_of(f)}" for f in files)
    return hashlib.sha256(listing.encode()).hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of ourselves, Python and the packages that shape an artifact, as far as installed."""
    found = {"lctr": __version__, "python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def machine() -> dict[str, str]:
    """CPU model and count, and each GPU with its driver as `nvidia-smi` names them (`none` without one)."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": str(len(os.sched_getaffinity(0))), "gpu": gpu_description() or "none"}


@cache
def gpu_description() -> str | None:
    """`name, compute capability, driver` of the first GPU, or None where `nvidia-smi` finds none."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.splitlines()[0] if answer else None
