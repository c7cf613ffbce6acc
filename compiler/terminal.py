"""Text of a model on its way to a terminal or a pipe."""

import sys

from onnxforge.compiler.errors import RequestRefused

_KEPT = "\n\t"


def show(piece: str) -> None:
    """Print a piece of generated text at once. A terminal gets no control bytes: they could drive it."""
    text = "".join(c for c in piece if c in _KEPT or c.isprintable()) if sys.stdout.isatty() else piece
    print(text, end="", flush=True)


def piped_text() -> str:
    """What was piped in, or nothing when stdin is a terminal.

    Raises:
        RequestRefused: it is not text.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02X} at position {error.start}"
        raise RequestRefused(
            f"stdin is not valid {error.encoding.upper()}: {found}. Convert it first."
        ) from error
