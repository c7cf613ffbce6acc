"""What a pass saw: matches, near-misses with the reason, and measures with what followed from them.

Passes hold no state, so they speak to whoever listens. Outside :func:`listen` a note goes nowhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum


class NoteKind(StrEnum):
    """Whether the rewrite happened, or what was measured to decide it."""

    MATCH = "match"
    NEAR_MISS = "near-miss"
    MEASURED = "measured"


@dataclass(frozen=True)
class Note:
    """One place in the graph where a pass acted, or declined to act."""

    kind: NoteKind
    what: str
    """The rewrite, in the field's words: ``GroupQueryAttention``, ``SkipSimplifiedLayerNormalization``."""
    where: str
    """The node or value that anchors the place."""
    reason: str = ""
    """For a near-miss: why it was left alone, and what would have been needed. For a measure: the outcome."""
    value: float = 0.0
    """For a measure: the number."""


_listener: ContextVar[list[Note] | None] = ContextVar("onnxforge_notes", default=None)


def match(what: str, where: str | None) -> None:
    """Record that the rewrite named ``what`` was made at ``where``."""
    _record(Note(NoteKind.MATCH, what, where or "(unnamed)"))


def near_miss(what: str, where: str | None, reason: str) -> None:
    """Record that ``what`` almost applied at ``where`` and why it did not."""
    _record(Note(NoteKind.NEAR_MISS, what, where or "(unnamed)", reason))


def measured(what: str, where: str | None, value: float, outcome: str) -> None:
    """Record a number that a decision about ``what`` at ``where`` was made on, and the decision."""
    _record(Note(NoteKind.MEASURED, what, where or "(unnamed)", outcome, value))


@contextmanager
def listen() -> Iterator[list[Note]]:
    """Collect the notes of the passes that run inside the block."""
    notes: list[Note] = []
    token = _listener.set(notes)
    try:
        yield notes
    finally:
        _listener.reset(token)


def _record(note: Note) -> None:
    notes = _listener.get()
    if notes is not None:
        notes.append(note)
