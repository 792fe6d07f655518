"""What a benchmark hands on: a JSON record with the machine and versions in it, and Markdown tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolchain.artifacts import machine, versions, writing


def written(record: dict[str, Any], output: Path | None) -> str:
    """The record as JSON, machine and versions added; also in the file `output`, if there is one."""
    text = json.dumps({**record, "machine": machine(), "versions": versions()}, indent=1, default=str)
    if output:
        with writing(output) as temporary:
            temporary.write_text(text + "\n")
    return text


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))
