"""What a command prints, if not a table: JSON for programs, a path, a sentence for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from toolchain.artifacts import Made


def fields(value: Any) -> Any:
    """A dataclass as JSON has it; None stays None."""
    from dataclasses import asdict

    return asdict(value) if value is not None else None


def selected(record: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """What a record says under these keys."""
    return {key: record[key] for key in keys}


def print_json(value: Any) -> None:
    """On stdout, where a program reads it; a path is a string."""
    click.echo(json.dumps(value, indent=1, default=str))


def say_made(made: Made) -> None:
    """Where the result is, and whether it was there before."""
    if made.reused:
        click.echo("Unchanged: reused.")
    click.echo(made.artifact.path)


def say_aside(sentence: str) -> None:
    """On stderr, so that stdout stays a program's."""
    click.echo(sentence, err=True)
