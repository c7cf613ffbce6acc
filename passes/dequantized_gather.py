"""An embedding lookup over a blockwise quantized table, in standard operators."""

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.block_scheme import BlockScheme
from onnxforge.passes.constants import add_array
from onnxforge.passes.matching import insert_after, rank, redirect, remove_dead
from onnxforge.passes.quantized_table import QuantizedTable

WHAT = "quantized embedding"


class _Chain:
    """Nodes of one output each, in order, all named after one place in the graph."""

    def __init__(self, graph: ir.Graph, scope: str) -> None:
        self.nodes: list[ir.Node] = []
        self._graph = graph
        self._scope = scope

    def add(
        self,
        op_type: str,
        *inputs: ir.Value,
        dtype: ir.DataType,
        attributes: dict[str, int | float | str] | None = None,
    ) -> ir.Value:
        """One more node; its output has ``dtype``."""
        name = f"{self._scope}/{op_type}_{len(self.nodes)}"
        output = ir.Value(name=f"{name}_output", type=ir.TensorType(dtype))
        converted = ir.convenience.convert_attributes(attributes or {})
        self.nodes.append(ir.Node("", op_type, inputs, converted, outputs=(output,), name=name))
        return output

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """An initializer beside the chain."""
        return add_array(self._graph, f"{self._scope}/{name}", array)


def dequantized_gather(node: ir.Node, table: QuantizedTable) -> bool:
    """Replace ``Gather(table, ids)`` by the lookup of codes and scales; True when it was replaced.

    ::

        Gather(codes, ids) -> Cast -> Sub(zero) -> Mul(Gather(scales, ids)) -> Reshape [ids..., K]
                                                   [-> Add(Gather(offsets, ids))]
    """
    ids, result = node.inputs[1], node.outputs[0]
    size = rank(ids) if ids is not None else None
    graph = node.graph
    if ids is None or size is None or not isinstance(graph, ir.Graph):
        notes.near_miss(WHAT, node.name, "the rank of the ids is not known")
        return False
    if table.order is not None:
        notes.near_miss(WHAT, node.name, "its blocks hold columns that are no neighbours")
        return False
    kind, scheme = result.dtype or ir.DataType.FLOAT, table.scheme
    chain = _Chain(graph, node.name or result.name or "embedding")
    codes = _codes(chain, table.packed, ids, size, table.width // scheme.block_size, scheme)
    numbers = chain.add("Cast", codes, dtype=kind, attributes={"to": int(kind)})
    origin = _origin(chain, table, ids, size, kind)
    last = chain.constant("last_axis", np.array([-1], dtype=np.int64))
    centred = chain.add("Sub", numbers, origin, dtype=kind)
    steps = chain.add("Gather", table.scales, ids, dtype=kind)
    steps = chain.add("Unsqueeze", steps, last, dtype=kind)
    values = chain.add("Mul", centred, steps, dtype=kind)
    if table.offsets is not None:
        offsets = chain.add("Gather", table.offsets, ids, dtype=kind)
        values = chain.add("Add", values, chain.add("Unsqueeze", offsets, last, dtype=kind), dtype=kind)
    shape = chain.constant("shape", np.array([0] * size + [table.width], dtype=np.int64))
    rows = chain.add("Reshape", values, shape, dtype=kind)
    rows.shape, rows.type = result.shape, result.type
    insert_after(node, *chain.nodes)
    redirect(result, rows)
    remove_dead([node])
    notes.match(WHAT, node.name)
    return True


def _codes(
    chain: _Chain, packed: ir.Value, ids: ir.Value, size: int, blocks: int, scheme: BlockScheme
) -> ir.Value:
    """uint8 [ids..., blocks, block]: one code per byte."""
    rows = chain.add("Gather", packed, ids, dtype=ir.DataType.UINT8)
    if scheme.bits == 8:
        return rows
    return _nibbles(chain, rows, (*[0] * size, blocks, scheme.block_size))


def _nibbles(chain: _Chain, rows: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """Two codes from each byte, the low half first."""
    kind = ir.DataType.UINT8
    low = chain.add("BitwiseAnd", rows, chain.constant("low", np.array(15, dtype=np.uint8)), dtype=kind)
    four = chain.constant("four", np.array(4, dtype=np.uint8))
    high = chain.add("BitShift", rows, four, dtype=kind, attributes={"direction": "RIGHT"})
    last = chain.constant("pair_axis", np.array([-1], dtype=np.int64))
    halves = [chain.add("Unsqueeze", half, last, dtype=kind) for half in (low, high)]
    pairs = chain.add("Concat", *halves, dtype=kind, attributes={"axis": -1})
    return chain.add("Reshape", pairs, chain.constant("codes", np.array(shape, dtype=np.int64)), dtype=kind)


def _origin(chain: _Chain, table: QuantizedTable, ids: ir.Value, size: int, kind: ir.DataType) -> ir.Value:
    """The zero point of each block as a number, broadcastable over the block."""
    scheme = table.scheme
    if table.zeros is None:
        return chain.constant("zero", np.array(scheme.middle, dtype=kind.numpy()))
    zeros = chain.add("Gather", table.zeros, ids, dtype=ir.DataType.UINT8)
    if scheme.bits == 4:
        blocks = table.width // scheme.block_size
        zeros = _nibbles(chain, zeros, (*[0] * size, scheme.packed_zeros(blocks) * 2))
        bounds = [np.array([number], dtype=np.int64) for number in (0, blocks, -1)]
        names = ("first", "blocks", "axis")
        ends = [chain.constant(name, bound) for name, bound in zip(names, bounds, strict=True)]
        zeros = chain.add("Slice", zeros, *ends, dtype=ir.DataType.UINT8)
    numbers = chain.add("Cast", zeros, dtype=kind, attributes={"to": int(kind)})
    last = chain.constant("zero_axis", np.array([-1], dtype=np.int64))
    return chain.add("Unsqueeze", numbers, last, dtype=kind)
