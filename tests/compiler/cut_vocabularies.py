"""The sizes and the corpus of tests that cut a vocabulary."""

from pathlib import Path

from onnxforge.compiler.eval_text import calibration_text

SIZE = 640
"""Rows of the model's table; the tokenizers have 600 tokens."""
LINES = calibration_text().text[:60_000]


def corpus_in(folder: Path) -> Path:
    """A file of these lines, by which tokens are counted."""
    path = folder / "corpus.txt"
    path.write_text(LINES)
    return path
