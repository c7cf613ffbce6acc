"""Weights that come quantized already: blocks of codes that ride on a float tensor until they are wanted.

A source attaches them to its lazy float tensor under ``tensor.meta[STORED_BLOCKS]``, as rows [N, K]. A pass
that transposes or joins weights carries them along with :func:`turned` and :func:`joined`. Nothing large is
read on the way: like the float values, codes move once, when the artifact is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes

STORED_BLOCKS: Final = "stored_blocks"
"""Key of ``tensor.meta`` for the blocks of a tensor [N, K]."""
STORED_BLOCKS_TURNED: Final = "stored_blocks_turned"
"""The same for a tensor [K, N]: the blocks still lie along K."""

MIDDLE: Final = "middle"
"""A value is ``(code - 2 ** (bits - 1)) * step``."""
ZERO: Final = "zero"
"""A value is ``(code - zero) * step``: each block has its own zero point."""
MINIMUM: Final = "minimum"
"""A value is ``code * step + minimum``."""

Form: TypeAlias = tuple[int, int, str]
"""Bits of a code, elements of a block, and one of the three above. Plain: sources import no pass."""
Coded: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""codes uint8 [N, K], steps float32 [N, K / block], and, as the form says, float32 minimums or uint8 zero
points [N, K / block], or None."""


class StoredBlocks(Protocol):
    """The blocks of one weight [N, K]."""

    @property
    def form(self) -> Form:
        """What all its blocks have in common."""
        ...

    @property
    def order(self) -> np.ndarray | None:
        """int64 [K]: the column of the weight that each column of the codes holds; None where they agree.

        GPTQ may quantize columns in the order of their importance, and then stores blocks of columns that
        are no neighbours.
        """
        ...

    def read(self) -> Coded:
        """The blocks; reads the source."""
        ...


@dataclass(frozen=True)
class _Joined:
    """Chosen rows of several weights of one form and order, one after the other."""

    pieces: tuple[tuple[StoredBlocks, tuple[int, ...]], ...]

    @property
    def form(self) -> Form:
        return self.pieces[0][0].form

    @property
    def order(self) -> np.ndarray | None:
        return self.pieces[0][0].order

    def read(self) -> Coded:
        parts = [(piece.read(), list(rows)) for piece, rows in self.pieces]
        codes = np.concatenate([coded[0][rows] for coded, rows in parts])
        steps = np.concatenate([coded[1][rows] for coded, rows in parts])
        origins = [coded[2][rows] for coded, rows in parts if coded[2] is not None]
        return codes, steps, np.concatenate(origins) if origins else None


@dataclass(frozen=True)
class _Cut:
    """The same codes in smaller blocks: pieces of one block share its step."""

    whole: StoredBlocks
    block: int

    @property
    def form(self) -> Form:
        bits, _, origin = self.whole.form
        return bits, self.block, origin

    @property
    def order(self) -> np.ndarray | None:
        return self.whole.order

    def read(self) -> Coded:
        codes, steps, origins = self.whole.read()
        times = self.whole.form[1] // self.block
        return codes, steps.repeat(times, 1), None if origins is None else origins.repeat(times, 1)


def stored_blocks(tensor: ir.TensorProtocol, *, transposed: bool) -> StoredBlocks | None:
    """The blocks of ``tensor``, a matrix [K, N] if ``transposed``, else [N, K]; None when it has none."""
    found: StoredBlocks | None = tensor.meta.get(STORED_BLOCKS_TURNED if transposed else STORED_BLOCKS)
    return found


def cut(blocks: StoredBlocks, size: int) -> StoredBlocks:
    """``blocks`` in pieces of ``size`` elements, a divisor of their own size."""
    return blocks if blocks.form[1] == size else _Cut(blocks, size)


def turned(source: ir.TensorProtocol, result: ir.TensorProtocol) -> None:
    """Let ``result``, the transpose of the matrix ``source``, carry its blocks."""
    for here, there in (
        (STORED_BLOCKS, STORED_BLOCKS_TURNED),
        (STORED_BLOCKS_TURNED, STORED_BLOCKS),
    ):
        if here in source.meta:
            result.meta[there] = source.meta[here]


def kept_rows(source: ir.TensorProtocol, rows: tuple[int, ...], result: ir.TensorProtocol) -> None:
    """Let ``result``, chosen rows of a matrix [N, K] or columns of one [K, N], carry their blocks."""
    for key in (STORED_BLOCKS, STORED_BLOCKS_TURNED):
        if key in source.meta:
            result.meta[key] = _Joined(((source.meta[key], rows),))


def joined(pieces: Sequence[tuple[ir.TensorProtocol, tuple[int, ...]]], result: ir.TensorProtocol) -> None:
    """Let ``result``, chosen columns of the matrices [K, N] side by side, carry their blocks.

    Only if all have blocks of one form in one order: a matrix has one kind of block.
    """
    found = [(stored_blocks(tensor, transposed=True), columns) for tensor, columns in pieces]
    kept = tuple((blocks, columns) for blocks, columns in found if blocks is not None)
    if len(kept) == len(pieces) and all(_alike(blocks, kept[0][0]) for blocks, _ in kept[1:]):
        result.meta[STORED_BLOCKS_TURNED] = _Joined(kept)
    elif kept:
        forms = ", ".join("none" if blocks is None else _spelled(blocks) for blocks, _ in found)
        reason = f"the weights that it joins differ in their blocks ({forms}), and none are kept"
        notes.near_miss("joined blocks", result.name, reason)


def _spelled(blocks: StoredBlocks) -> str:
    bits, size, origin = blocks.form
    return f"{bits} bits in {size} from the {origin}{'' if blocks.order is None else ', reordered'}"


def _alike(one: StoredBlocks, other: StoredBlocks) -> bool:
    if one.form != other.form or (one.order is None) != (other.order is None):
        return False
    return one.order is None or other.order is None or np.array_equal(one.order, other.order)
