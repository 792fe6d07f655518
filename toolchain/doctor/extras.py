"""The extras of this package: which are installed whole, by what the installed package itself asks for."""

import re
from importlib.metadata import PackageNotFoundError, requires, version

from toolchain.doctor.finding import Finding

PACKAGE = "lctr"
DEVELOPMENT = "dev"
REQUIREMENT = re.compile(
    r'(?P<name>[\w.-]+)(?:\[(?P<extras>[^\]]*)\])?\s*(?:>=(?P<least>[\d.]+))?.*?extra == "(?P<extra>[\w-]+)"'
)


def extras() -> tuple[Finding, ...]:
    """A finding for each extra that users install."""
    try:
        asked = [found for line in requires(PACKAGE) or () if (found := REQUIREMENT.match(line))]
    except PackageNotFoundError:
        return (Finding("extras", f"unknown: {PACKAGE} runs from a folder, not installed", "note", "pip install ."),)
    names = dict.fromkeys(found["extra"] for found in asked if found["extra"] != DEVELOPMENT)
    return tuple(_finding(name, missing_of(name, asked)) for name in names)


def missing_of(extra: str, asked: list[re.Match[str]]) -> tuple[str, ...]:
    """Packages of an extra, and of the extras that it takes in, which are not there or too old."""
    lacking: dict[str, None] = {}
    for found in (match for match in asked if match["extra"] == extra):
        if found["name"] == PACKAGE:
            within = [name.strip() for name in (found["extras"] or "").split(",")]
            lacking |= dict.fromkeys(name for other in within for name in missing_of(other, asked))
        elif not _present(found["name"], found["least"]):
            lacking[found["name"]] = None
    return tuple(lacking)


def _finding(extra: str, lacking: tuple[str, ...]) -> Finding:
    name = f"extra {extra}"
    if not lacking:
        return Finding(name, "installed")
    return Finding(name, f"lacks {', '.join(lacking)}", "missing", f"pip install '{PACKAGE}[{extra}]'")


def _present(package: str, least: str | None) -> bool:
    try:
        found = version(package)
    except PackageNotFoundError:
        return False
    return least is None or _numbers(found) >= _numbers(least)


def _numbers(version_: str) -> tuple[int, ...]:
    """The release's numbers; what follows them (`+cpu`, `rc1`) is left out."""
    found = re.match(r"\d+(?:\.\d+)*", version_)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
