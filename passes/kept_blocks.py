"""Which blocks of a source a quantized graph takes over as they are."""

from dataclasses import dataclass

import onnx_ir as ir

from onnxforge.passes.stored_blocks import MIDDLE, StoredBlocks, cut, stored_blocks


@dataclass(frozen=True)
class KeptBlocks:
    """What is asked of blocks that stay."""

    bits: int
    """The most that a code may have."""
    block_size: int
    plain: bool
    """Only symmetric blocks, cut to ``block_size``: what ONNX Runtime's fast CUDA kernels take."""

    def of(self, tensor: ir.TensorProtocol, *, transposed: bool) -> StoredBlocks | None:
        """The blocks of the matrix ``tensor`` in the form in which they stay; None where they do not."""
        found = stored_blocks(tensor, transposed=transposed)
        if found is None or self._refusal(found):
            return None
        return cut(found, self.block_size) if self.plain else found

    def reason(self, tensor: ir.TensorProtocol, *, transposed: bool) -> str:
        """Why a matrix keeps no blocks."""
        found = stored_blocks(tensor, transposed=transposed)
        return "its weight comes in no blocks" if found is None else self._refusal(found)

    def _refusal(self, found: StoredBlocks) -> str:
        bits, block_size, origin = found.form
        if bits > self.bits:
            return f"its blocks have {bits} bits, more than {self.bits}"
        if self.plain and origin != MIDDLE:
            return f"each of its blocks has its own {origin}; symmetric blocks are needed"
        if self.plain and block_size % self.block_size:
            return f"its blocks of {block_size} cannot be cut to {self.block_size}"
        return ""
