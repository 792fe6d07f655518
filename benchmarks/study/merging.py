"""A record of some parts, completed with the others of an earlier one."""

from collections.abc import Mapping
from typing import Any

from study.plan import BATCHNORM, FINE_TUNING, PARTS, SPEED

LOCALIZERS = "localizers"


def completed(found: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured now, and what only the earlier record has.

    Args:
        found: parts of a record, with `code`: part -> version of the code that it was measured with.
        earlier: a whole record; empty: there is none.

    Returns:
        the parts of both in the order of a whole study; of a localizer, or of the seconds of one network and method,
        that is in both the one measured now.
    """
    both = [earlier, found]
    localizers = {each["name"]: each for record in both for each in record.get(LOCALIZERS, ())}
    rows = {(row["network"], row["method"]): row for record in both for row in record.get(SPEED, ())}
    merged: dict[str, Any] = {LOCALIZERS: [localizers[name] for name in PARTS if name in localizers]}
    merged |= {part: record[part] for record in both for part in (BATCHNORM, FINE_TUNING) if part in record}
    if rows:
        merged[SPEED] = list(rows.values())
    code = {part: version for record in both for part, version in record.get("code", {}).items()}
    return {**merged, "code": {part: code[part] for part in PARTS if part in code}}
