"""Take units out of a graph: weights, shapes, head counts and the constants that spell sizes get smaller."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxforge.passes.attention_axes import set_heads
from onnxforge.passes.constants import add_array, constant, extents, integers
from onnxforge.passes.coupled_axes import LabelledAxis
from onnxforge.passes.forget_measured import forget_measured
from onnxforge.passes.lazy import lazy_tensor
from onnxforge.passes.matching import drop_initializer, input_at, int_attribute, static_dim
from onnxforge.passes.prune_groups import PruneGroup, Unit
from onnxforge.passes.stored_blocks import joined


def shrink(graph: ir.Graph, group: PruneGroup, kept: Sequence[int]) -> None:
    """Remove every unit of ``group`` that is not in ``kept``.

    Weights become slices that are taken when they are written. What was measured of values before is
    forgotten: it no longer holds behind the cut.
    """
    left = {axis.value: _entries(axis, kept) for axis in group.axes}
    if group.attention is not None:
        _set_heads(group.attention, group, len(kept))
    for node in _touched(group):
        _respell(graph, node, group, left)
    for axis in group.axes:
        _cut(graph, axis, left[axis.value])
    forget_measured(graph)


def _entries(axis: LabelledAxis, kept: Sequence[int]) -> np.ndarray:
    """int64: the entries along ``axis`` that stay."""
    return np.flatnonzero((axis.labels < 0) | np.isin(axis.labels, kept))


def _cut(graph: ir.Graph, axis: LabelledAxis, entries: np.ndarray) -> None:
    value, tensor = axis.value, constant(axis.value)
    if tensor is not None:
        sizes = list(extents(tensor))
        sizes[axis.axis] = len(entries)
        smaller = lazy_tensor(_taking(tensor, axis.axis, entries), dtype=tensor.dtype, shape=sizes)
        if axis.axis == -1 and len(sizes) == 2:
            joined([(tensor, tuple(int(entry) for entry in entries))], smaller)
        _hold(graph, value, smaller)
    if value.shape is not None:
        dims = list(value.shape)
        dims[axis.axis] = len(entries)
        value.shape = ir.Shape(dims)


def _taking(tensor: ir.TensorProtocol, axis: int, entries: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: np.take(tensor.numpy(), entries, axis=axis)


def _hold(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Let the initializer ``value`` hold ``tensor``; the output of a Constant node becomes one."""
    node = value.producer()
    tensor.name = value.name
    if node is None:
        value.const_value = tensor
        return
    new = ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=tensor)
    value.replace_all_uses_with(new)
    graph.remove(node, safe=True)
    graph.register_initializer(new)


def _set_heads(node: ir.Node, group: PruneGroup, kept: int) -> None:
    queries, kv = group.heads
    if group.unit is Unit.KV_GROUP:
        set_heads(node, kept * queries // kv, kept)
    else:
        set_heads(node, kept, kept if queries == kv else kv)


def _touched(group: PruneGroup) -> tuple[ir.Node, ...]:
    found: dict[ir.Node, None] = {}
    for axis in group.axes:
        made_by = axis.value.producer()
        found |= dict.fromkeys(use.node for use in axis.value.uses())
        if made_by is not None:
            found[made_by] = None
    return tuple(found)


def _respell(graph: ir.Graph, node: ir.Node, group: PruneGroup, left: dict[ir.Value, np.ndarray]) -> None:
    """Sizes that a node spells out, in a constant of its own from now on: others may read the old one."""
    if node.op_type == "Reshape" and node.outputs[0] in left:
        axis = next(axis for axis in group.axes if axis.value is node.outputs[0])
        spelled = integers(node.inputs[1])
        if spelled is not None and spelled[axis.axis] > 0:
            sizes = list(spelled)
            sizes[axis.axis] = len(left[axis.value])
            _replace(graph, node, 1, sizes)
    if node.op_type == "Split" and node.inputs[0] in left and _splits(node, group):
        pieces = [_extent(output, int_attribute(node, "axis", 0), left) for output in node.outputs]
        if input_at(node, 1) is not None or len(set(pieces)) > 1:
            _split_into(graph, node, pieces)
    if node.op_type == "RotaryEmbedding" and int_attribute(node, "num_heads", 0) and node.outputs[0] in left:
        before = len(group.labels_of(node.outputs[0]))
        heads = int_attribute(node, "num_heads", 0) * len(left[node.outputs[0]]) // before
        node.attributes["num_heads"] = ir.AttrInt64("num_heads", heads)


def _extent(value: ir.Value, axis: int, left: dict[ir.Value, np.ndarray]) -> int:
    """Entries of a piece of a Split, which its rule has made sure are known."""
    return len(left[value]) if value in left else static_dim(value, axis) or 0


def _splits(node: ir.Node, group: PruneGroup) -> bool:
    """Whether a Split splits the axis that shrinks: along another one its pieces have all of the labels."""
    whole = len(group.labels_of(node.inputs[0]))
    return any(0 < len(group.labels_of(piece)) < whole for piece in node.outputs)


def _split_into(graph: ir.Graph, node: ir.Node, sizes: Sequence[int]) -> None:
    if input_at(node, 1) is not None:
        _replace(graph, node, 1, sizes)
        return
    node.attributes.pop("num_outputs", None)
    node.resize_inputs(2)
    node.replace_input_with(1, add_array(graph, f"{node.name}.split", np.array(sizes, np.int64)))


def _replace(graph: ir.Graph, node: ir.Node, index: int, sizes: Sequence[int]) -> None:
    old = node.inputs[index]
    assert old is not None
    node.replace_input_with(index, add_array(graph, f"{old.name}.pruned", np.array(sizes, np.int64)))
    drop_initializer(old)
