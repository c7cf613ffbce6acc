"""Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing on request."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol, TextIO

from onnxforge.compiler.observe import PassRecord
from onnxforge.passes.notes import Note

_SECONDS_BETWEEN_LINES = 30
_MOST_OUTCOMES = 3
"""Of measures, one by one in a line; more are only counted, and in the report."""


class Progress(Protocol):
    """Hears what a compile is doing. Work is measured in bytes of weights handled."""

    def plan(self, size: int) -> None:
        """The whole compile will handle ``size`` bytes, over all of its stages."""

    def begin(self, stage: str) -> None:
        """A stage starts."""

    def advance(self, size: int) -> None:
        """``size`` more bytes are done."""

    def during(self, detail: str) -> None:
        """How far the stage is that began last. May be called often."""

    def end(self, detail: str) -> None:
        """The stage that began last is over; ``detail`` says what came of it."""


class Silent:
    """For callers who want no progress."""

    def plan(self, size: int) -> None:
        """Ignore the plan."""

    def begin(self, stage: str) -> None:
        """Ignore the start."""

    def advance(self, size: int) -> None:
        """Ignore the advance."""

    def during(self, detail: str) -> None:
        """Ignore how far it is."""

    def end(self, detail: str) -> None:
        """Ignore the end."""


class Within:
    """The progress of a part of a compile: its stages carry the part's name."""

    def __init__(self, whole: Progress, name: str) -> None:
        self._whole, self._name = whole, name

    def plan(self, size: int) -> None:
        """The whole has its plan already, with this part in it."""

    def begin(self, stage: str) -> None:
        """Pass it on, named."""
        self._whole.begin(f"{self._name}: {stage}")

    def advance(self, size: int) -> None:
        """Pass it on."""
        self._whole.advance(size)

    def during(self, detail: str) -> None:
        """Pass it on."""
        self._whole.during(detail)

    def end(self, detail: str) -> None:
        """Pass it on."""
        self._whole.end(detail)


class Lines:
    """One plain line for each stage that ended, with its time and the share of the work done; of a stage that
    takes minutes, one every half minute."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._total, self._done = 0, 0
        self._stage, self._started, self._said = "", 0.0, 0.0

    def plan(self, size: int) -> None:
        """Set what 100% is."""
        self._total = size

    def begin(self, stage: str) -> None:
        """Remember the stage and the time."""
        self._stage, self._started = stage, time.perf_counter()
        self._said = self._started

    def advance(self, size: int) -> None:
        """Count the bytes."""
        self._done += size

    def during(self, detail: str) -> None:
        """Print a line, unless the last one is only seconds old."""
        if time.perf_counter() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.perf_counter()
            self.end(detail)

    def end(self, detail: str) -> None:
        """Print the line."""
        print(self.line(detail), file=self._stream, flush=True)

    def line(self, detail: str) -> str:
        """``  42%  fuse-attention       0.31 s  30 matches``."""
        share = f"{min(self._done / self._total, 1):4.0%}" if self._total else "    "
        return f"{share}  {self._stage:<18} {time.perf_counter() - self._started:6.2f} s  {detail}"


@contextmanager
def progress(stream: TextIO = sys.stderr, *, quiet: bool = False) -> Iterator[Progress]:
    """The progress that suits ``stream``: a bar on a terminal (unless ``TERM=dumb``), else plain lines."""
    if quiet:
        yield Silent()
    elif stream.isatty() and os.environ.get("TERM") != "dumb":
        with ExitStack() as stack:
            yield _bar(stream, stack)
    else:
        yield Lines(stream)


def describe(record: PassRecord) -> str:
    """What a pass did, in a few words: matches, near-misses, nodes and bytes before and after."""
    parts = []
    if record.matches:
        parts.append(f"{len(record.matches)} matches")
    if record.near_misses:
        parts.append(f"{len(record.near_misses)} near-misses")
    if record.measures:
        parts.extend(_outcomes(record.measures))
    if record.before.nodes != record.after.nodes:
        parts.append(f"{record.before.nodes} -> {record.after.nodes} nodes")
    if record.before.weight_bytes != record.after.weight_bytes:
        before, after = record.before.weight_bytes / 1e6, record.after.weight_bytes / 1e6
        parts.append(f"{before:.1f} -> {after:.1f} MB")
    return ", ".join(parts) or ("changed" if record.modified else "nothing to do")


def _outcomes(measures: Sequence[Note]) -> list[str]:
    """What followed from ``measures``, and how often; their number where they are of too many kinds."""
    if len(measures) == 1:
        return [measures[0].reason]
    counts = Counter(note.reason for note in measures)
    if len(counts) > _MOST_OUTCOMES:
        return [f"{len(measures)} measures"]
    return [f"{count} {outcome}" for outcome, count in sorted(counts.items())]


def _bar(stream: TextIO, stack: ExitStack) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    console = Console(file=stream)  # honours NO_COLOR by itself
    columns = (TextColumn("{task.description:<18}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    shown = stack.enter_context(RichProgress(*columns, TimeElapsedColumn(), console=console, transient=True))
    bar = shown.add_task("", total=None)

    class Bar(Lines):
        def plan(self, size: int) -> None:
            super().plan(size)
            shown.update(bar, total=size)

        def begin(self, stage: str) -> None:
            super().begin(stage)
            shown.update(bar, description=stage)

        def advance(self, size: int) -> None:
            super().advance(size)
            shown.advance(bar, size)

        def during(self, detail: str) -> None:
            shown.update(bar, description=f"{self._stage}: {detail}")

        def end(self, detail: str) -> None:
            shown.console.print(self.line(detail), markup=False, highlight=False)

    return Bar(stream)
