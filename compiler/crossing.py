"""What crosses between CPU and GPU for one token, step or text: bytes, where open sizes are assumed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from onnxforge.compiler.placement import Copy

CONTEXT, ROWS = 1024, 8
"""What open sizes are taken for: tokens of context, and rows of anything that is neither text nor token."""
TOKEN: Mapping[str, int] = {"batch_size": 1, "sequence_length": 1, "num_logits": 1}
"""In a decoder that is called once for each token."""
TEXT: Mapping[str, int] = {"batch_size": 1, "sequence_length": CONTEXT}
"""In a graph that is called once for a text."""
_LONG = ("capacity", "numbers_and_tokens", "past", "total")
_ASSUMED = f"one text, {CONTEXT:,} tokens of context"
_LOOP, _MAIN, _TO_HOST = "main/Loop.body", "main", "to the CPU"


@dataclass(frozen=True)
class CopyFact:
    """One value that crosses in each run of its graph."""

    value: str
    way: str
    """``to the CPU`` or ``to the GPU``."""
    how: str
    bytes: int
    """With ``CONTEXT`` and ``ROWS`` for open sizes."""


class Part(Protocol):
    """What is read of one graph of a file."""

    @property
    def file(self) -> str:
        """The file."""

    @property
    def graph(self) -> str:
        """``main``, ``main/Loop.body``, ..."""

    @property
    def each(self) -> str:
        """What one run of the file's outermost graph is for: a ``token``, or a ``text``."""

    @property
    def copies(self) -> tuple[CopyFact, ...]:
        """What ONNX Runtime copies inside it."""

    @property
    def edges(self) -> tuple[CopyFact, ...]:
        """What its caller feeds and fetches."""


def copy_fact(copy: Copy, sizes: Mapping[str, int]) -> CopyFact:
    """``copy`` in bytes; ``sizes`` are of dimensions by name."""
    value = copy.value
    shape = value.shape if value.shape is not None else (ROWS,)
    elements = 1
    for size in shape:
        elements *= size if isinstance(size, int) else _assumed(str(size), copy, sizes)
    width = value.dtype.bitwidth if value.dtype is not None else 64
    way = _TO_HOST if copy.to_host else "to the GPU"
    return CopyFact(value.name or "", way, copy.how, elements * width // 8)


def crossing_lines(parts: Sequence[Part]) -> Iterator[str]:
    """One line a file: what each token (step, text) moves to the GPU and back."""
    for file in dict.fromkeys(part.file for part in parts):
        mine = {part.graph: part for part in parts if part.file == file}
        main = mine[_MAIN]
        once = _both((*main.copies, *main.edges))
        if _LOOP in mine:
            inner = [copy for name in mine if name.startswith(f"{_LOOP}/") for copy in mine[name].copies]
            drawn = f"; where it draws tokens {_both(inner)} more" if inner else ""
            step = _both(mine[_LOOP].copies)
            yield f"- `{file}`: **each step** moves {step}{drawn}; a whole run {once} once ({_ASSUMED})"
        else:
            yield f"- `{file}`: **each {main.each}** moves {once}: {_what(main.edges)} ({_ASSUMED})"


def _both(copies: Sequence[CopyFact]) -> str:
    back = sum(copy.bytes for copy in copies if copy.way == _TO_HOST)
    return f"{sum(copy.bytes for copy in copies) - back:,} bytes to the GPU and {back:,} back"


def _what(copies: Sequence[CopyFact]) -> str:
    return ", ".join(f"`{copy.value}` {copy.bytes:,}" for copy in copies)


def _assumed(name: str, copy: Copy, sizes: Mapping[str, int]) -> int:
    if name in sizes:
        return sizes[name]
    return CONTEXT if copy.how == "carried" or any(word in name for word in _LONG) else ROWS
