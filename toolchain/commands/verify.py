"""`lctr verify`."""

from __future__ import annotations

from pathlib import Path

import click

from toolchain.commands import terminal
from toolchain.commands.answers import fields, print_json
from toolchain.commands.options import PATH, json_option
from toolchain.errors import ArtifactError


@click.command(short_help="Check artifacts against their sidecars.")
@click.argument("path", type=PATH)
@json_option
def verify(path: Path, as_json: bool) -> None:
    """Check PATH, an artifact or a folder of them, against the sidecars, and show what was made from what."""
    from toolchain.lineage import verify

    checked = verify(path)
    if as_json:
        print_json([fields(artifact) for artifact in checked])
    else:
        rows = [
            [
                artifact.path.name,
                artifact.kind,
                "changed" if artifact.problem else "whole",
                ", ".join(f"{p.role}: {p.path.name if p.path else p.sha256[:12]}" for p in artifact.parents),
            ]
            for artifact in checked
        ]
        terminal.table(str(path), ["artifact", "kind", "content", "made from"], rows)
    problems = [artifact.problem for artifact in checked if artifact.problem]
    if problems:
        raise ArtifactError(problems[0] if len(problems) == 1 else f"{len(problems)} artifacts: " + " ".join(problems))
