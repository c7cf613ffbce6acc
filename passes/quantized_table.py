"""The lazy initializers of one blockwise quantized matrix."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxforge.passes.block_quantization import quantize
from onnxforge.passes.block_scheme import BlockScheme
from onnxforge.passes.constants import add_initializer, extents
from onnxforge.passes.lazy import lazy_tensor

MatrixKey: TypeAlias = tuple[ir.Value, bool]


@dataclass(frozen=True)
class MatrixWeight:
    """A matrix that a MatMul multiplies by, as rows [N, K]."""

    value: ir.Value
    """The stored initializer."""
    tensor: ir.TensorProtocol
    transposed: bool
    """The initializer holds [K, N] (plain MatMul), not [N, K] (an embedding that the head transposes)."""

    @property
    def key(self) -> MatrixKey:
        """Two uses with the same key can share one quantized table."""
        return self.value, self.transposed

    @property
    def size(self) -> tuple[int, int]:
        """(N, K)."""
        first, second = extents(self.tensor)
        return (second, first) if self.transposed else (first, second)

    def rows(self) -> np.ndarray:
        """float [N, K]; reads the weight."""
        array = self.tensor.numpy()
        return array.T if self.transposed else array


@dataclass(frozen=True)
class QuantizedTable:
    """The initializers of one quantized matrix [N, K]."""

    packed: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    scheme: BlockScheme
    width: int
    """K: elements of one row."""


class _OnceForAll:
    """The parts of one quantized matrix, computed together while the artifact is written.

    The parts are separate initializers, and a writer asks for one after the other. Whichever comes first
    leaves the small ones behind for those that follow; the packed weight is never kept.
    """

    def __init__(self, weight: MatrixWeight, scheme: BlockScheme) -> None:
        self._weight, self._scheme = weight, scheme
        self._left: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def part(self, name: str) -> np.ndarray:
        """``packed``, ``scales`` or ``zeros``, as :class:`Blocks` describes them."""
        with self._lock:
            if name in self._left:
                return self._left.pop(name)
            blocks = quantize(self._weight.rows(), self._scheme)
            small = {"scales": blocks.scales} | ({} if blocks.zeros is None else {"zeros": blocks.zeros})
            self._left = {other: array for other, array in small.items() if other != name}
            return {"packed": blocks.packed, **small}[name]


def store(graph: ir.Graph, weight: MatrixWeight, scheme: BlockScheme) -> QuantizedTable:
    """Lazy initializers that stand for ``weight``; the float source stays alive inside them only."""
    count, width = weight.size
    blocks, name = width // scheme.block_size, weight.value.name
    matrix = _OnceForAll(weight, scheme)

    def lazy(part: str, dtype: ir.DataType, compute: Callable[[], np.ndarray], *shape: int) -> ir.Value:
        tensor = lazy_tensor(compute, dtype=dtype, shape=shape, name=f"{name}.{part}")
        return add_initializer(graph, f"{name}.{part}", tensor)

    kind, byte = weight.tensor.dtype, ir.DataType.UINT8
    packed = lazy(f"q{scheme.bits}", byte, lambda: matrix.part("packed"), count, blocks, scheme.blob())
    steps = lazy("scales", kind, lambda: matrix.part("scales").astype(kind.numpy()), count, blocks)
    zeros = None
    if not scheme.symmetric:
        zeros = lazy("zeros", byte, lambda: matrix.part("zeros"), count, scheme.packed_zeros(blocks))
    return QuantizedTable(packed, steps, zeros, scheme, width)
