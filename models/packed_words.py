"""Codes of 4 or 8 bits out of 32-bit words, layout by layout."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from onnxforge.models.packed_format import Layout

_INTERLEAVED: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where AWQ's words hold columns 0 to 7: it packs columns 0, 2, 4, 6, 1, 3, 5, 7, the lowest bits first."""

Words = NDArray[np.int32]
Codes = NDArray[np.uint8]


def matrix_codes(words: Words, layout: Layout, bits: int, width: int) -> Codes:
    """uint8 [N, K] of a matrix, whatever way ``layout`` has it."""
    if layout is Layout.AWQ:
        return np.ascontiguousarray(_interleaved(words).T)
    rows = words if layout is Layout.PACKED else words.T
    return _unpacked(rows, bits)[:, :width]


def zero_codes(words: Words, layout: Layout, bits: int, count: int) -> Codes:
    """uint8 [N, groups]: the zero points of a matrix of ``count`` rows.

    GPTQ's first format stores them less one, subtracted from the packed words, borrows included, and its
    readers add the one to the words (GPTQModel, ``convert_gptq_v1_to_v2_format``).
    """
    if layout is Layout.AWQ:
        return _interleaved(words).T
    if layout is Layout.PACKED:
        return _unpacked(words.T, bits)[:, :count].T
    if layout is Layout.GPTQ:
        one = np.uint32(0x11111111 if bits == 4 else 0x01010101)
        words = (words.view(np.uint32) + one).view(np.int32)
    return _unpacked(words, bits)[:, :count].T


def _unpacked(words: Words, bits: int) -> Codes:
    """Along the last axis, the lowest bits of a word first."""
    stored = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
    if bits == 8:
        return stored
    halves = np.stack([stored & 15, stored >> 4], axis=-1)
    return halves.reshape(*stored.shape[:-1], -1)


def _interleaved(words: Words) -> Codes:
    codes = _unpacked(words, 4)
    return codes.reshape(*words.shape, 8)[..., _INTERLEAVED].reshape(codes.shape)
