"""How a block of weights is rounded: a record that the layout, the grids and the lookup all read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockScheme:
    """How a block of weights is rounded."""

    bits: int
    block_size: int
    symmetric: bool
    method: str = "rtn"
    """The name of a grid in :mod:`onnxforge.passes.block_grids`."""

    @property
    def levels(self) -> int:
        """Number of representable values."""
        return 1 << self.bits

    @property
    def middle(self) -> int:
        """The zero point of a symmetric block, which MatMulNBits assumes where none is given."""
        return self.levels // 2

    def blob(self) -> int:
        """Bytes of one packed block."""
        return self.block_size * self.bits // 8

    def packed_zeros(self, blocks: int) -> int:
        """Bytes that hold the zero points of one row."""
        return (blocks * self.bits + 7) // 8
