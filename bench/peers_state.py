"""What a run of `peers.py` has measured: written after every session, so that a killed run can go on."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SESSIONS = ("speed", "generation", "encoder")
SCORES = ("quality", "encoder_quality")


@dataclass
class State:
    """The content of a results file. ``identity`` says what was measured, and on what."""

    path: Path
    content: dict

    @classmethod
    def opened(cls, path: Path, identity: Mapping[str, object], resume: bool) -> "State":
        """A fresh state, or with ``resume`` what ``path`` holds.

        Raises:
            SystemExit: the file to resume holds something else than ``identity``.
        """
        scores, sessions = {key: {} for key in SCORES}, {key: [] for key in SESSIONS}
        fresh = cls(path, json.loads(json.dumps({"identity": dict(identity), **scores, **sessions})))
        if not resume or not path.is_file():
            return fresh
        kept = json.loads(path.read_text())
        found, wanted = kept.get("identity", {}), fresh.content["identity"]
        if differing := sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k)):
            raise SystemExit(
                f"--resume: {path} was measured with another {', '.join(differing)}. "
                "Ask for what it holds, or run without --resume to start over."
            )
        return cls(path, {**fresh.content, **kept})

    @classmethod
    def read(cls, path: Path) -> "State":
        """What ``path`` holds.

        Raises:
            SystemExit: no such file.
        """
        if not path.is_file():
            raise SystemExit(f"there is no {path} to report")
        return cls(path, json.loads(path.read_text()))

    def sessions(self, section: str) -> list[dict]:
        return self.content[section]

    def scores(self, section: str) -> dict[str, dict]:
        return self.content[section]

    def add(self, section: str, session: dict) -> None:
        self.content[section].append(session)
        self.write()

    def score(self, section: str, name: str, found: dict) -> None:
        self.content[section][name] = found
        self.write()

    def set(self, name: str, value: object) -> None:
        self.content[name] = value
        self.write()

    def write(self) -> None:
        """Whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")
        os.replace(part, self.path)
