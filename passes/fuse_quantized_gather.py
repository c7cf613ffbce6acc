"""The lookup in a blockwise quantized embedding as one operator."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass
from onnxforge.passes.constants import add_array, constant, extents, scalar
from onnxforge.passes.matching import (
    CONTRIB,
    both_orders,
    insert_after,
    int_attribute,
    is_op,
    make,
    producer,
    redirect,
    remove_dead,
)

WHAT = "GatherBlockQuantized"
_BYTE = 8


@dataclass(frozen=True)
class _Lookup:
    """Codes [V, blocks, bytes] and scales [V, blocks] read at the same ``ids``."""

    codes: ir.Value
    scales: ir.Value
    ids: ir.Value
    bits: int
    block_size: int


@dataclass(frozen=True)
class FuseQuantizedGather(GraphPass):
    """Fuse the lookup that ``quantize-weights`` writes in standard operators.

    ::

        (Gather(codes, ids) - middle) * Unsqueeze(Gather(scales, ids), -1)
          ->  GatherBlockQuantized(codes, ids, Unsqueeze(scales, -1))

    ``codes`` stays the tensor [V, blocks, bytes] that the tied head's MatMulNBits reads: the operator takes
    it with the last axis as the quantized one, and then its scales need that axis too. On a GPU this is one
    kernel instead of seven; of the 4-bit form, BitwiseAnd and BitShift have no CUDA kernel at all, so that
    the lookup would leave the GPU for every token.
    """

    summary: ClassVar[str] = "lookup in a quantized embedding as GatherBlockQuantized (for GPUs)"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse in place."""
        changed = False
        for node in tuple(model.graph):
            lookup = _lookup(node) if is_op(node, "Mul") else None
            if lookup is not None:
                _emit(node, lookup, model.graph)
                changed = True
        if changed:
            model.opset_imports.setdefault(CONTRIB, 1)
        return ir.passes.PassResult(model, modified=changed)


def _lookup(product: ir.Node) -> _Lookup | None:
    for centred, spread in both_orders(product):
        subtraction, steps = producer(centred, "Sub"), producer(spread, "Unsqueeze")
        table = producer(steps.inputs[0], "Gather") if steps is not None else None
        numbers = producer(subtraction.inputs[0], "Cast") if subtraction is not None else None
        if table is None or numbers is None or subtraction is None:
            continue
        found = _codes(numbers.inputs[0])
        if found is None:
            continue
        gather, bits = found
        if scalar(subtraction.inputs[1]) != 1 << (bits - 1):
            notes.near_miss(
                WHAT, product.name, "each block has its own zero point; symmetric blocks are needed"
            )
            continue
        return _checked(gather, table, bits)
    return None


def _checked(gather: ir.Node, table: ir.Node, bits: int) -> _Lookup | None:
    """The lookup, if codes and scales are constant, read at the same places, and fit together."""
    codes, scales, ids = gather.inputs[0], table.inputs[0], gather.inputs[1]
    data, steps = constant(codes), constant(scales)
    if codes is None or scales is None or ids is None or ids is not table.inputs[1]:
        return None
    if data is None or steps is None or data.dtype is not ir.DataType.UINT8 or len(data.shape) != 3:
        return None
    if int_attribute(gather, "axis", 0) or int_attribute(table, "axis", 0):
        return None
    rows, blocks, size = extents(data)
    if extents(steps) != (rows, blocks):
        return None
    return _Lookup(codes, scales, ids, bits, size * _BYTE // bits)


def _codes(value: ir.Value | None) -> tuple[ir.Node, int] | None:
    """The Gather behind ``value``, and the bits of its codes: bytes, or halves of bytes put side by side."""
    gather = producer(value, "Gather")
    if gather is not None:
        return gather, _BYTE
    turned = producer(value, "Reshape")
    pairs = producer(turned.inputs[0], "Concat") if turned is not None else None
    if pairs is None or len(pairs.inputs) != 2:
        return None
    halves = [producer(item, "Unsqueeze") for item in pairs.inputs]
    low = producer(halves[0].inputs[0], "BitwiseAnd") if halves[0] is not None else None
    high = producer(halves[1].inputs[0], "BitShift") if halves[1] is not None else None
    if low is None or high is None or low.inputs[0] is not high.inputs[0]:
        return None
    gather = producer(low.inputs[0], "Gather")
    return (gather, _BYTE // 2) if gather is not None else None


def _emit(product: ir.Node, lookup: _Lookup, graph: ir.Graph) -> None:
    result, scope = product.outputs[0], product.name or product.outputs[0].name
    last = add_array(graph, f"{scope}/scales_axis", np.array([-1], dtype=np.int64))
    steps = ir.Node("", "Unsqueeze", [lookup.scales, last], name=f"{scope}/Unsqueeze_scales")
    steps.outputs[0].name, steps.outputs[0].type = f"{scope}/scales", result.type
    attributes: dict[str, int | float | str] = {
        "bits": lookup.bits,
        "block_size": lookup.block_size,
        "gather_axis": 0,
        "quantize_axis": 2,
    }
    inputs = [lookup.codes, lookup.ids, steps.outputs[0]]
    fused = make(WHAT, inputs, like=result, name=f"{scope}_gather", domain=CONTRIB, attributes=attributes)
    insert_after(product, steps, fused)
    redirect(result, fused.outputs[0])
    remove_dead([product])
    notes.match(WHAT, fused.name)
