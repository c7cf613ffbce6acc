"""Activations in the order in which a stored weight has its columns.

::

    x @ W  =  Gather(x, order, axis=-1) @ W[order]

for blocks of columns that are no neighbours. ONNX Runtime's MatMulNBits has an input for it, ``g_idx``, and
its CPU kernel then decodes the whole matrix at every call. The Gather moves the K numbers of a row instead,
once for all weights that read the same activations in the same order.
"""

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import add_array


class OrderedColumns:
    """Reorders activations of one graph; remembers what it has already reordered."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._orders: dict[bytes, ir.Value] = {}
        self._made: dict[tuple[ir.Value, bytes], ir.Value] = {}

    def of(self, data: ir.Value, order: np.ndarray, reader: ir.Node) -> ir.Value:
        """``data`` [..., K] with the columns ``order``, computed before ``reader``."""
        key = order.tobytes()
        found = self._made.get((data, key))
        if found is None:
            if key not in self._orders:
                self._orders[key] = add_array(self._graph, "column_order", order.astype(np.int64))
            name = f"{data.name}/{self._orders[key].name}"
            output = ir.Value(name=f"{name}_output", shape=data.shape, type=data.type)
            axis = [ir.AttrInt64("axis", -1)]
            node = ir.Node("", "Gather", (data, self._orders[key]), axis, outputs=(output,), name=name)
            self._graph.insert_before(reader, node)
            found = self._made[data, key] = output
        return found
