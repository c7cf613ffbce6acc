"""The results of `gpu.py` while they come in: written after every row, and taken up again by the next run."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

Row = dict


class Rows:
    """Rows by key, in one JSON file that is whole at any time.

    They belong to one device with one set of versions. A file of another set is begun anew; a row that failed
    is tried again.
    """

    def __init__(self, path: Path, identity: Mapping[str, str] | None = None) -> None:
        """Take up the rows in ``path``, if there are any. Without ``identity`` they may be of any device."""
        self.path = path
        self.identity = dict(identity or json.loads(path.read_text())["identity"])
        self.left_behind = 0
        """Rows of other versions, which are not taken over."""
        self._rows: dict[str, Row] = {}
        if path.is_file():
            found = json.loads(path.read_text())
            if found.get("identity") == self.identity:
                self._rows = found["rows"]
            else:
                self.left_behind = len(found.get("rows", {}))

    def has(self, key: str) -> bool:
        """Whether ``key`` was measured, and did not fail."""
        return key in self._rows and "error" not in self._rows[key]

    def add(self, key: str, **values: object) -> None:
        """Keep one row. Numbers that are none become words, since JSON has no way to write them."""
        self._rows[key] = plain(values)
        self._write()

    def forget(self, pattern: str) -> None:
        """Drop the rows whose key ``pattern`` is found in, so that they are measured again."""
        self._rows = {key: row for key, row in self._rows.items() if not re.search(pattern, key)}

    def under(self, prefix: str) -> list[Row]:
        """The rows whose key begins with ``prefix``, those that failed left out, in order of arrival."""
        return [row for key, row in self._rows.items() if key.startswith(prefix) and "error" not in row]

    def failures(self) -> dict[str, str]:
        """What went wrong, by key."""
        return {key: str(row["error"]) for key, row in self._rows.items() if "error" in row}

    def get(self, key: str) -> Row:
        """The row of ``key``, empty if there is none or it failed."""
        return self._rows[key] if self.has(key) else {}

    def __len__(self) -> int:
        return len(self._rows)

    def facts(self) -> dict[str, object]:
        """What is written."""
        return {"identity": self.identity, "rows": self._rows}

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".partial")
        beside.write_text(json.dumps(self.facts(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        beside.replace(self.path)


def plain(value: object) -> object:
    """``value`` as strict JSON takes it: NaN and infinities as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
