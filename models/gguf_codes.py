"""The codes inside ggml's blocks, for whoever can multiply by them as they are.

Three types are plain grids of 32 values: ``Q4_0`` is ``(q - 8) * d``, ``Q4_1`` is ``q * d + m`` and ``Q8_0``
is ``q * d`` with a signed q, which is given here with 128 added. ``d`` and ``m`` are float16, widened to
float32 without loss. Source: ggml's block layouts, ``ggml-common.h``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onnxforge.models.stored_blocks import MIDDLE, MINIMUM, Coded

BLOCK: Final = 32
_FORMS: Final = {"Q4_0": (4, BLOCK, MIDDLE), "Q4_1": (4, BLOCK, MINIMUM), "Q8_0": (8, BLOCK, MIDDLE)}


@dataclass(frozen=True)
class GgufCodes:
    """One weight [N, K] as codes; nothing is read before :meth:`read`."""

    type_name: str
    rows: Callable[[], NDArray[np.uint8]]
    """The stored bytes, uint8 [N, bytes per row]."""

    @property
    def form(self) -> tuple[int, int, str]:
        """Bits of a code, elements of a block, and what its values are counted from."""
        return _FORMS[self.type_name]

    @property
    def order(self) -> None:
        """The codes lie in the order of the weight's columns."""

    def read(self) -> Coded:
        """codes uint8 [N, K], steps float32 [N, K / 32], minimums float32 [N, K / 32] or None."""
        bits, _, origin = self.form
        offset = origin == MINIMUM
        rows = np.asarray(self.rows())
        raw = rows.reshape(len(rows), -1, 2 + 2 * offset + BLOCK * bits // 8)
        steps = _float16(raw, 0)
        minimums = _float16(raw, 2) if offset else None
        body = raw[..., 2 + 2 * offset :]
        if bits == 8:
            codes = body ^ np.uint8(128)  # a signed byte plus 128
        else:
            codes = np.concatenate([body & 15, body >> 4], axis=-1)
        return codes.reshape(len(rows), -1), steps, minimums


def coded(type_name: str, rows: Callable[[], NDArray[np.uint8]]) -> GgufCodes | None:
    """The codes of a matrix of ggml type ``type_name``; None where the type is no plain grid."""
    return GgufCodes(type_name, rows) if type_name in _FORMS else None


def _float16(raw: NDArray[np.uint8], start: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(raw[..., start : start + 2]).view("<f2")[..., 0].astype(np.float32)
