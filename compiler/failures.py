"""Every exception that may reach the command line: the paragraph it is told in, and its exit code."""

import re
from dataclasses import dataclass

from onnxforge.compiler.errors import CompileError
from onnxforge.compiler.usage import WrongUsage, usage_message
from onnxforge.models.errors import SourceError, UnsupportedModel
from onnxforge.passes.base import PassRefused
from onnxforge.runtimes.errors import ArtifactError, ContextOverflow, NumericalError, RequestError

_DOUBLED_STOP = re.compile(r"(?<=[\w)\]'\"`])\.(?=[.;](\s|$))")
"""The full stop of a message that was quoted inside another; not an ellipsis, not the folder above."""
_REFUSED = (SourceError, UnsupportedModel, PassRefused, ArtifactError, ContextOverflow, RequestError)


@dataclass(frozen=True)
class Failure:
    """One failure, ready to be told."""

    kind: str
    message: str
    exit_code: int


def explain(error: Exception) -> Failure:
    """How to tell of ``error``: 2 for input that was refused, 3 for a missed budget, 1 for what should
    not happen."""
    kind, message = type(error).__name__, one_paragraph(str(error))
    if isinstance(error, CompileError):
        return Failure(kind, message, error.exit_code)
    if isinstance(error, WrongUsage):
        return Failure("UsageError", one_paragraph(usage_message(error)), error.exit_code)
    if isinstance(error, _REFUSED):
        return Failure(kind, message, 2)
    if isinstance(error, NumericalError):
        return Failure(kind, message, 1)
    if isinstance(error, MemoryError):
        advice = "Close other programs, or compile a smaller model: the peak is about its largest tensor."
        return Failure(kind, f"Out of memory. {advice}", 1)
    return Failure(kind, f"internal error: {kind}: {message} (run again with --debug for the traceback)", 1)


def one_paragraph(text: str) -> str:
    """``text`` on one line, without the control characters that a model's files could smuggle in."""
    printable = (c if c.isprintable() else " " for c in text)
    return _DOUBLED_STOP.sub("", " ".join("".join(printable).split()))
