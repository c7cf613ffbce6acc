"""The lazy initializers of one blockwise quantized matrix."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxforge.passes.block_gptq import compensated
from onnxforge.passes.block_quantization import pack, pack_zeros, quantize
from onnxforge.passes.block_scheme import BlockScheme
from onnxforge.passes.constants import add_array, add_initializer, extents
from onnxforge.passes.input_moments import InputMoments, together
from onnxforge.passes.lazy import lazy_tensor
from onnxforge.passes.stored_blocks import MINIMUM, ZERO, StoredBlocks

MatrixKey: TypeAlias = tuple[ir.Value, bool]
Parts: TypeAlias = dict[str, np.ndarray]


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
    offsets: ir.Value | None = None
    """float32 [N, K / block]: a number for each block that is added to its values."""
    order: np.ndarray | None = None
    """int64 [K]: the column of the weight that each column of the codes holds; None where they agree."""


class _OnceForAll:
    """The parts of one quantized matrix, computed together while the artifact is written.

    The parts are separate initializers, and a writer asks for one after the other. Whichever comes first
    leaves the small ones behind for those that follow; the packed weight is never kept.
    """

    def __init__(self, compute: Callable[[], Parts]) -> None:
        self._compute = compute
        self._left: Parts = {}
        self._lock = threading.Lock()

    def part(self, name: str) -> np.ndarray:
        """``packed``, or one of the small parts."""
        with self._lock:
            if name in self._left:
                return self._left.pop(name)
            parts = self._compute()
            self._left = {other: array for other, array in parts.items() if other not in (name, "packed")}
            return parts[name]


def store(
    graph: ir.Graph, weight: MatrixWeight, scheme: BlockScheme, inputs: Sequence[InputMoments] = ()
) -> QuantizedTable:
    """Lazy initializers that stand for ``weight``; the float source stays alive inside them only.

    Codes are chosen for the moments of the ``inputs`` that it multiplies, where these are given, and else for
    the weight alone.
    """
    parts = _Initializers(graph, weight, scheme, lambda: _rounded(weight, scheme, inputs))
    packed, steps = parts.codes(), parts.numbers("scales", weight.tensor.dtype)
    zeros = None if scheme.symmetric else parts.zeros()
    return QuantizedTable(packed, steps, zeros, scheme, weight.size[1])


def store_kept(graph: ir.Graph, weight: MatrixWeight, stored: StoredBlocks) -> QuantizedTable:
    """Lazy initializers that hold the blocks which ``weight`` came with: codes, steps and zeros or minimums.

    Zero points stay the whole numbers that they are, which MatMulNBits takes. Minimums become offsets::

        offset = Cast(minimum) + middle * step          ONNX Runtime computes it once, while it loads

    A block with a minimum m is ``q * d + m = (q - middle) * d + offset``. Codes then centre on zero, where
    rounded activations do least harm, and need no zero point. For m and d of 11 bits (float16) the offset is
    exact in float32, and so every decoded value is rounded once, to the same bits, unless one of m and
    ``middle * d`` is more than 4,000 times the other. Then an ulp may differ.

    Minimums are stored as the float16 that they are. Steps are not: ONNX Runtime's int8 kernels answer zeros,
    without a word, where the steps come from a Cast that nothing folded (1.31.1, optimizations off).
    """
    bits, block_size, origin = stored.form
    scheme = BlockScheme(bits, block_size, symmetric=origin != ZERO)
    parts = _Initializers(graph, weight, scheme, lambda: _kept(stored, scheme))
    packed, steps = parts.codes(), parts.numbers("scales", weight.tensor.dtype)
    zeros = parts.zeros() if origin == ZERO else None
    offsets = parts.offsets(steps) if origin == MINIMUM else None
    return QuantizedTable(packed, steps, zeros, scheme, weight.size[1], offsets, stored.order)


class _Initializers:
    """Lazy initializers named after one weight, over parts that are computed together."""

    def __init__(
        self, graph: ir.Graph, weight: MatrixWeight, scheme: BlockScheme, compute: Callable[[], Parts]
    ) -> None:
        self.blocks = weight.size[1] // scheme.block_size
        self._graph, self._weight, self._scheme = graph, weight, scheme
        self._matrix = _OnceForAll(compute)

    def add(self, part: str, dtype: ir.DataType, shape: tuple[int, ...], name: str = "") -> ir.Value:
        """The initializer of one part."""

        def compute() -> np.ndarray:
            return self._matrix.part(part).astype(dtype.numpy(), copy=False)

        full = f"{self._weight.value.name}.{name or part}"
        return add_initializer(self._graph, full, lazy_tensor(compute, dtype=dtype, shape=shape, name=full))

    def codes(self) -> ir.Value:
        """Packed codes, uint8 [N, K / block, blob]."""
        shape = (self._weight.size[0], self.blocks, self._scheme.blob())
        return self.add("packed", ir.DataType.UINT8, shape, f"q{self._scheme.bits}")

    def numbers(self, part: str, dtype: ir.DataType) -> ir.Value:
        """A number for each block, [N, K / block]."""
        return self.add(part, dtype, (self._weight.size[0], self.blocks))

    def zeros(self) -> ir.Value:
        """Packed zero points, uint8 [N, bytes]."""
        shape = (self._weight.size[0], self._scheme.packed_zeros(self.blocks))
        return self.add("zeros", ir.DataType.UINT8, shape)

    def offsets(self, steps: ir.Value) -> ir.Value:
        """What is added to the values of each block, [N, K / block], in nodes at the start of the graph."""
        kind, name = self._weight.tensor.dtype, f"{self._weight.value.name}.middle"
        middle = add_array(self._graph, name, np.array(self._scheme.middle, dtype=kind.numpy()))
        widened = self._node("Cast", self.numbers("minimums", ir.DataType.FLOAT16), to=int(kind))
        centre = self._node("Mul", steps, middle)
        total = self._node("Add", widened.outputs[0], centre.outputs[0])
        self._graph.insert_before(self._graph[0], (widened, centre, total))
        return total.outputs[0]

    def _node(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Node:
        """A node, not yet in the graph, whose output is [N, K / block] in the weight's dtype."""
        name = f"{inputs[0].name}/{op_type}"
        output = ir.Value(
            name=f"{name}_output",
            shape=ir.Shape((self._weight.size[0], self.blocks)),
            type=ir.TensorType(self._weight.tensor.dtype),
        )
        converted = ir.convenience.convert_attributes(attributes)
        return ir.Node("", op_type, inputs, converted, outputs=(output,), name=name)


def _rounded(weight: MatrixWeight, scheme: BlockScheme, inputs: Sequence[InputMoments]) -> Parts:
    rows = weight.rows()
    blocks = compensated(rows, together(inputs), scheme) if inputs else quantize(rows, scheme)
    parts = {"packed": blocks.packed, "scales": blocks.scales}
    return parts if blocks.zeros is None else {**parts, "zeros": blocks.zeros}


def _kept(stored: StoredBlocks, scheme: BlockScheme) -> Parts:
    codes, steps, origins = stored.read()
    count, blocks = steps.shape
    parts = {"packed": pack(codes.reshape(count, blocks, -1), scheme.bits), "scales": steps}
    if origins is None:
        return parts
    if scheme.symmetric:
        return {**parts, "minimums": origins}
    return {**parts, "zeros": pack_zeros(origins, scheme.bits)}
