"""One matrix of a GPTQ, AWQ or compressed-tensors checkpoint: its exact values, or its codes as they are."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxforge.models.packed_format import Layout
from onnxforge.models.packed_words import Codes, matrix_codes, zero_codes
from onnxforge.models.stored_blocks import MIDDLE, ZERO, Coded

_BLOCKS: Final = (128, 64, 32, 16)
"""Sizes of the blocks that a group is given out in, the largest that fits. MatMulNBits has 256 too, but it
rounds activations per block as well, and the larger the block the more coarsely."""
_CHUNK: Final = 2**20
"""Elements that are dequantized at a time."""


@dataclass(frozen=True)
class PackedMatrix:
    """A weight [N, K] in codes: ``(code - zero) * scale``, one zero and scale for each group along K.

    Nothing is read before it is asked for. For codes of 8 bits and scales of float16 or bfloat16 the values
    are exact in float32.
    """

    layout: Layout
    bits: int
    shape: tuple[int, int]
    """(N, K)."""
    codes: ir.TensorProtocol
    scales: ir.TensorProtocol
    zeros: ir.TensorProtocol | None
    groups: NDArray[np.int64]
    """[K]: the group of each column."""

    def values(self) -> NDArray[np.float32]:
        """float32 [N, K]."""
        codes, scales, zeros = self._codes(), self._scales(), self._zeros()
        values = np.empty(self.shape, dtype=np.float32)
        step = max(1, _CHUNK // self.shape[1])
        for start in range(0, self.shape[0], step):
            rows = slice(start, start + step)
            np.subtract(codes[rows], zeros[rows][:, self.groups], out=values[rows], dtype=np.float32)
            values[rows] *= scales[rows][:, self.groups]
        return values

    @property
    def fits_blocks(self) -> bool:
        """Whether the groups divide into blocks that MatMulNBits has."""
        return self._blocks is not None

    @cached_property
    def form(self) -> tuple[int, int, str]:
        """Bits of a code, elements of a block, and what values are counted from; reads the zero points.

        They are few, and a checkpoint that calls itself symmetric is one only if they say so.
        """
        assert self._blocks is not None
        middle = 1 << (self.bits - 1)
        symmetric = self.zeros is None or bool((self._zeros() == middle).all())
        return self.bits, self._blocks[0], MIDDLE if symmetric else ZERO

    @property
    def order(self) -> NDArray[np.int64] | None:
        """The columns in the order of their blocks, where groups are made of columns far apart."""
        return self._blocks[1] if self._blocks is not None else None

    def read(self) -> Coded:
        """codes uint8 [N, K], steps float32 [N, K / block], zero points uint8 [N, K / block] or None."""
        _, block, origin = self.form
        codes, groups = self._codes(), self.groups
        if self.order is not None:
            codes, groups = codes[:, self.order], groups[self.order]
        of_block = groups[::block]
        return codes, self._scales()[:, of_block], self._zeros()[:, of_block] if origin == ZERO else None

    @cached_property
    def _blocks(self) -> tuple[int, NDArray[np.int64] | None] | None:
        """The size of a block, and the order of columns that it needs."""
        for order in (None, np.argsort(self.groups, kind="stable")):
            groups = self.groups if order is None else self.groups[order]
            for block in _BLOCKS:
                if len(groups) % block == 0 and not np.ptp(groups.reshape(-1, block), axis=1).any():
                    return block, order
        return None

    def _codes(self) -> Codes:
        return matrix_codes(self.codes.numpy(), self.layout, self.bits, self.shape[1])

    def _scales(self) -> NDArray[np.float32]:
        scales = self.scales.numpy().astype(np.float32)
        return scales if self.layout is Layout.PACKED else scales.T

    def _zeros(self) -> Codes:
        if self.zeros is None:
            groups = int(self.groups.max()) + 1
            return np.full((self.shape[0], groups), 1 << (self.bits - 1), dtype=np.uint8)
        return zero_codes(self.zeros.numpy(), self.layout, self.bits, self.shape[0])
