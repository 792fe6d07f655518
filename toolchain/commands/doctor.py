"""`lctr doctor`."""

from __future__ import annotations

import click

from toolchain.commands import terminal
from toolchain.commands.answers import print_json
from toolchain.commands.options import json_option
from toolchain.errors import chosen


@click.command(short_help="Show what this machine can do, and what is missing.")
@click.option("--for", "purpose", metavar="NAME", help="Exit 1 where this cannot work: benchmark, build or train.")
@json_option
def doctor(purpose: str | None, as_json: bool) -> None:
    """Show what this machine can do, what is missing or broken, and what installs it.

    Needs no extra, and survives an installation that crashes when it is imported.
    """
    from toolchain.doctor.diagnosis import PURPOSES, diagnose, require

    if purpose:
        chosen("--for", purpose, PURPOSES)
    found = diagnose()
    if as_json:
        print_json(found.as_dict())
    else:
        terminal.findings_table(found.findings)
    if purpose:
        require(found, purpose)
