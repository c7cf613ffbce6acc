"""What QuantizeLinear and DequantizeLinear are to say: types, and how many values share a scale."""

from dataclasses import dataclass
from enum import StrEnum

import onnx_ir as ir

NONE = "none"
"""For activations: they stay float."""


class Granularity(StrEnum):
    """How many weights share one scale."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    """A column of [K, N]: one output."""
    BLOCK = "block"
    """``block_size`` neighbours along K, within a column."""


@dataclass(frozen=True)
class IntegerType:
    """An integer type and the codes that a quantizer may use of it."""

    dtype: ir.DataType
    bits: int
    signed: bool

    @property
    def least(self) -> int:
        """The smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def most(self) -> int:
        """The largest code."""
        return self.least + (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The code of zero on a symmetric grid."""
        return 0 if self.signed else 1 << (self.bits - 1)

    @property
    def reach(self) -> int:
        """Steps from the middle that a symmetric grid uses on both sides; the code below them is left out."""
        return (1 << (self.bits - 1)) - 1

    @property
    def since(self) -> int:
        """The opset from which QuantizeLinear and DequantizeLinear take the type."""
        return 10 if self.dtype in (ir.DataType.INT8, ir.DataType.UINT8) else 21


TYPES = {
    "int8": IntegerType(ir.DataType.INT8, 8, signed=True),
    "uint8": IntegerType(ir.DataType.UINT8, 8, signed=False),
    "int4": IntegerType(ir.DataType.INT4, 4, signed=True),
    "uint4": IntegerType(ir.DataType.UINT4, 4, signed=False),
    "int16": IntegerType(ir.DataType.INT16, 16, signed=True),
    "uint16": IntegerType(ir.DataType.UINT16, 16, signed=False),
}
WEIGHTS = ("int8", "uint8", "int4", "uint4", "int16")
ACTIVATIONS = ("uint8", "int8", "uint16", "int16", NONE)
BLOCKED_SINCE = 21
"""The opset from which a scale may serve a block."""


@dataclass(frozen=True)
class WeightScheme:
    """The grid of a weight matrix."""

    type: IntegerType
    granularity: Granularity
    block_size: int
    symmetric: bool

    @property
    def has_zeros(self) -> bool:
        """Whether a zero point has to be written: zero is the default of every type, unsigned ones too."""
        return not self.symmetric or self.type.middle != 0


def weight_scheme(
    weights: str, granularity: str, block_size: int, *, symmetric: bool, reduce_range: bool
) -> WeightScheme:
    """The scheme that the options of ``insert-qdq`` spell."""
    kind = TYPES[weights]
    if reduce_range:
        kind = IntegerType(kind.dtype, kind.bits - 1, kind.signed)
    return WeightScheme(kind, Granularity(granularity), block_size, symmetric)
