"""What one compile is asked for, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxforge.compiler.targets import Target


@dataclass(frozen=True)
class CompileRequest:
    """One compile: which model, for which target, into which folder."""

    model: str
    """A folder, ``org/name[@revision]``, a ``.gguf`` or ``.onnx`` file, or a demo name."""
    output: Path
    target: Target
    """The target with every edit of the command line already applied."""
    task: str | None = None
    """optimum's task name; None takes the one the model's configuration implies."""
    revision: str | None = None
    proof: bool = True
    """Measure the result against its source. Without, the manifest says ``proof: false``."""
    eval_text: Path | None = None
    """UTF-8 text for perplexity; None takes a held-out part of CPython's own documentation."""
    allow_missed_budget: bool = False
    """Publish even when a budget line is missed. The report still says that it was."""
    command: tuple[str, ...] = ()
    """The exact command line, for the report."""


@dataclass(frozen=True)
class CompileResult:
    """A published artifact and what is known of it."""

    output: Path
    task: str
    target: str
    passes: tuple[str, ...]
    content_digest: str
    """sha256 over every file that depends on the input alone (not on clocks or measurements)."""
    size: int
    """Bytes of the whole folder."""
    seconds: float
    summary: Mapping[str, float | str | bool]
    missed: tuple[str, ...] = ()
