"""An embedding and a head that an exporter stored twice, once transposed, become one weight again.

::

    Gather(E, ids) ... MatMul(x, H)   with H = E transposed   ->   MatMul(x, Transpose(E))

This is the one place where a pass looks into stored weights: TorchScript exports of tied models give no other
sign. Lazy weights, which our own exports have, are never read; a tied pair is visible there by name.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.constants import READABLE_ELEMENTS, constant, extents
from onnxforge.passes.matching import drop_initializer, is_op

WHAT = "tied embedding"
_ROWS = 1024


def tie_transposed_heads(graph: ir.Graph) -> bool:
    """Read the head from the embedding wherever it is a transposed copy of it; True when one was found."""
    tables = {node.inputs[0] for node in graph if is_op(node, "Gather") and _is_stored(node.inputs[0])}
    changed = False
    for node in tuple(graph):
        head = node.inputs[1] if is_op(node, "MatMul") else None
        if head is None or head in tables or not _is_stored(head):
            continue
        for table in tables:
            if table is not None and _is_transposed_copy(table, head):
                _read_from(node, head, table)
                changed = True
                break
    return changed


def _is_stored(value: ir.Value | None) -> bool:
    tensor = constant(value)
    return (
        tensor is not None
        and not isinstance(tensor, ir.LazyTensor)
        and len(tensor.shape) == 2
        and tensor.size > READABLE_ELEMENTS
    )


def _is_transposed_copy(table: ir.Value, head: ir.Value) -> bool:
    first, second = constant(table), constant(head)
    if first is None or second is None or first.dtype != second.dtype:
        return False
    if extents(first) != extents(second)[::-1]:
        return False
    return all(np.array_equal(rows, columns) for rows, columns in _pieces(first.numpy(), second.numpy()))


def _pieces(table: np.ndarray, head: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The two row by row, a few first: weights that differ are told apart at once."""
    bounds = [0, 1, *range(_ROWS, len(table), _ROWS), len(table)]
    for start, end in pairwise(bounds):
        yield table[start:end], head[:, start:end].T


def _read_from(node: ir.Node, head: ir.Value, table: ir.Value) -> None:
    output = ir.Value(name=f"{table.name}_transposed", type=head.type, shape=head.shape)
    perm = [ir.AttrInt64s("perm", [1, 0])]
    turned = ir.Node("", "Transpose", (table,), perm, outputs=(output,), name=f"{node.name}/Transpose")
    graph = node.graph
    assert graph is not None
    graph.insert_before(node, turned)
    node.replace_input_with(1, output)
    drop_initializer(head)
    notes.match(WHAT, node.name)
