"""Text on its way in: what is piped, and what is not text at all."""

import io
import sys

import pytest

from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.terminal import piped_text


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_piped_text_is_read(monkeypatch: pytest.MonkeyPatch):
    pipe(monkeypatch, "näh".encode())
    assert piped_text() == "näh"


def test_bytes_that_are_no_text_are_refused_by_place(monkeypatch: pytest.MonkeyPatch):
    pipe(monkeypatch, b"a\xff")
    with pytest.raises(RequestRefused, match="not valid UTF-8: byte 0xFF at position 1"):
        piped_text()
