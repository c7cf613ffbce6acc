"""Text of a model on its way to a terminal or a pipe."""

import sys

_KEPT = "\n\t"


def show(piece: str) -> None:
    """Print a piece of generated text at once. A terminal gets no control bytes: they could drive it."""
    text = "".join(c for c in piece if c in _KEPT or c.isprintable()) if sys.stdout.isatty() else piece
    print(text, end="", flush=True)


def piped_text() -> str:
    """What was piped in, or nothing when stdin is a terminal."""
    return "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
