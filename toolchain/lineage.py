"""Is what lies there still what was made, and do its parts belong together?"""

from dataclasses import dataclass
from pathlib import Path

from toolchain.artifacts import Artifact, load, read_sidecar, sidecar_of
from toolchain.errors import ArtifactError


@dataclass(frozen=True)
class Parent:
    """An input as a sidecar records it.

    Attributes:
        role: what it was used as.
        kind: what it is.
        sha256: its hash.
        path: the artifact among those looked at that has this hash; None: it is somewhere else.
    """

    role: str
    kind: str
    sha256: str
    path: Path | None


@dataclass(frozen=True)
class Checked:
    """One artifact.

    Attributes:
        path: of the artifact.
        kind: what it is; empty where the sidecar is unreadable.
        problem: one sentence; empty where content and sidecar agree.
        parents: its inputs.
    """

    path: Path
    kind: str
    problem: str
    parents: tuple[Parent, ...]


def verify(path: Path) -> tuple[Checked, ...]:
    """Check an artifact, or every artifact in a folder, against its sidecar, and find each one's inputs among them.

    Raises:
        ArtifactError: nothing is there, or no artifact.
    """
    # `.` has no name that a sidecar could be found by.
    path = path.resolve()
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: check the path.")
    # A folder with a sidecar of its own is one artifact.
    folder = path.is_dir() and not sidecar_of(path).exists()
    members = _members(path) if folder else [path]
    if not members:
        raise ArtifactError(f"{path} holds no artifact (no NAME.json beside NAME): name a folder made by `lctr`.")
    neighbours = members if folder else _members(path.parent)
    by_hash = {artifact.sha256: p for p in neighbours if (artifact := _sidecar(p))}
    return tuple(_checked(member, by_hash) for member in members)


def _members(folder: Path) -> list[Path]:
    """What has a sidecar that is ours; a sidecar left without its content counts, for then that is missing."""
    found = (file.with_suffix("") for file in sorted(folder.glob("*.json")))
    return [path for path in found if path.exists() or _sidecar(path)]


def _sidecar(path: Path) -> Artifact | None:
    try:
        return read_sidecar(path)
    except ArtifactError:
        return None


def _checked(path: Path, by_hash: dict[str, Path]) -> Checked:
    try:
        recorded = read_sidecar(path)
    except ArtifactError as error:
        return Checked(path, "", str(error), ())
    parents = tuple(
        Parent(role, parent["kind"], parent["sha256"], by_hash.get(parent["sha256"]))
        for role, parent in recorded.inputs.items()
    )
    try:
        load(path)
    except ArtifactError as error:
        return Checked(path, recorded.kind, str(error), parents)
    return Checked(path, recorded.kind, "", parents)
