"""A product with blocks that have offsets, for kernels that know none.

MatMulNBits takes zero points that are fractions, but ONNX Runtime's CPU kernel then decodes the whole matrix
at every call: 35 to 50 times slower for one row of 576 x 1536 at 4 bits, and it refuses 8 bits (1.31.1). The
offset of a block multiplies the sum of the activations in it, so it costs two small products instead::

    x @ W = MatMulNBits(x, codes, scales) + MatMul(MatMul(x, ones per block), offsets)

which took 1.14 times as long as the MatMulNBits alone for one row, and 1.2 times for 128. The sums are
computed once for all weights that read the same x.
"""

from typing import Final

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import add_array
from onnxforge.passes.matching import insert_after
from onnxforge.passes.quantized_table import QuantizedTable

_PART_OF: Final = "onnxforge.part_of"
"""Marks, in ``metadata_props``, the products that stay float: they make up a quantized one."""


def is_part(node: ir.Node) -> bool:
    """Whether ``node`` is one of the float products that this module made."""
    return _PART_OF in node.metadata_props


class BlockOffsets:
    """Adds offsets to quantized products of one graph; remembers the sums that it has already made."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._ones: dict[tuple[int, int, ir.DataType], ir.Value] = {}
        self._sums: dict[tuple[ir.Value, int], ir.Value] = {}

    def add(self, product: ir.Node, table: QuantizedTable) -> ir.Value:
        """The output of ``product``, a MatMulNBits over ``table``, with the offsets added."""
        data, offsets, plain = product.inputs[0], table.offsets, product.outputs[0]
        assert data is not None
        assert offsets is not None
        turn = _node("Transpose", (offsets,), f"{product.name}/offsets", plain)
        sums = self._sums_of(data, product, table)
        shift = _node("MatMul", (sums, turn.outputs[0]), f"{product.name}/shift", plain)
        total = _node("Add", (plain, shift.outputs[0]), f"{product.name}/sum", plain)
        insert_after(product, turn, shift, total)
        plain.name = f"{product.name}_output"
        total.outputs[0].shape = plain.shape
        return total.outputs[0]

    def _sums_of(self, data: ir.Value, product: ir.Node, table: QuantizedTable) -> ir.Value:
        """[..., K / block]: the sums of ``data`` over each block, computed before ``product``."""
        block, width = table.scheme.block_size, table.width
        made = self._sums.get((data, block))
        if made is None:
            node = _node(
                "MatMul", (data, self._indicator(width, block, product)), f"{data.name}/b{block}", data
            )
            self._graph.insert_before(product, node)
            made = self._sums[data, block] = node.outputs[0]
        return made

    def _indicator(self, width: int, block: int, product: ir.Node) -> ir.Value:
        """[K, K / block], one where the column's block holds the row. A product takes data of any rank."""
        kind = product.outputs[0].dtype or ir.DataType.FLOAT
        key = (width, block, kind)
        if key not in self._ones:
            array = np.kron(np.eye(width // block), np.ones((block, 1))).astype(kind.numpy())
            self._ones[key] = add_array(self._graph, f"block_sums_{width}_{block}", array)
        return self._ones[key]


def _node(op_type: str, inputs: tuple[ir.Value, ...], name: str, like: ir.Value) -> ir.Node:
    output = ir.Value(name=f"{name}_output", type=like.type)
    node = ir.Node("", op_type, inputs, outputs=(output,), name=name)
    node.metadata_props[_PART_OF] = "quantized product"
    return node
