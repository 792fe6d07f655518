"""Evaluations on disk: each is kept as soon as it is made, so that a search that was killed goes on where it was."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolchain.artifacts import writing
from toolchain.errors import ArtifactError
from toolchain.probe import Quality
from toolchain.sensitivity import Left

SCHEMA_VERSION = 1
QUANTIZED, FLOAT = "quantized", "float"


class Ledger:
    """What was measured of one graph, with one set of ranges, on one set of images.

    Args:
        path: JSON file; read where there is one.
        key: what every figure depends on. A file with another key holds other figures, and is begun anew.
        units: all of them, in graph order.

    Raises:
        ArtifactError: there is a file, and it is no ledger.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], units: Sequence[str]) -> None:
        self.path = path
        self._head = {"schema": SCHEMA_VERSION, "key": dict(key), "units": list(units)}
        self._units = units
        self._measured: dict[Left, Quality] = {}
        self._facts: dict[str, Any] = {}
        self.outdated = False
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._measured)

    def get(self, left: Left) -> Quality | None:
        """What was measured with these units left float."""
        return self._measured.get(left)

    def add(self, left: Left, quality: Quality) -> None:
        """Keep a measurement; it takes the place of an older one of the same set."""
        self._measured[left] = quality
        self._save()

    def conclude(self, facts: Mapping[str, Any]) -> None:
        """Write what follows from the evaluations beside them."""
        self._facts = dict(facts)
        self._save()

    def _save(self) -> None:
        evaluations = [{**self._named(left), **asdict(quality)} for left, quality in self._measured.items()]
        with writing(self.path) as temporary:
            temporary.write_text(json.dumps({**self._head, **self._facts, "evaluations": evaluations}, indent=1) + "\n")

    def _named(self, left: Left) -> dict[str, Any]:
        """The shorter way to say which units were which: everything else is the other."""
        listed = [unit for unit in self._units if unit in left]
        if 2 * len(listed) <= len(self._units):
            return {"only": FLOAT, "units": listed}
        return {"only": QUANTIZED, "units": [unit for unit in self._units if unit not in left]}

    def _read(self) -> None:
        try:
            record = json.loads(self.path.read_text())
            self.outdated = any(record[name] != value for name, value in self._head.items())
            if not self.outdated:
                self._measured = dict(map(self._evaluation, record["evaluations"]))
        except OSError as error:
            raise ArtifactError(f"{self.path} cannot be read ({error.strerror}): check the path.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{self.path} is no record of evaluations: remove it, or choose another output path."
            ) from error

    def _evaluation(self, record: dict[str, Any]) -> tuple[Left, Quality]:
        only, units = record.pop("only"), frozenset(record.pop("units"))
        return units if only == FLOAT else frozenset(self._units) - units, Quality(**record)
