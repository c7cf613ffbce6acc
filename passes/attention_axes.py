"""Where the heads of an attention operator lie: in its query, key, value, cache, bias and output.

The places and attributes are those of ``com.microsoft.GroupQueryAttention`` and ``MultiHeadAttention`` (ONNX
Runtime's contrib operators) and of ONNX's own ``Attention`` (opset 23).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import constant, extents
from onnxforge.passes.coupled_axes import LabelledAxis
from onnxforge.passes.matching import CONTRIB, input_at, int_attribute, is_op
from onnxforge.passes.shapes import Facts

_FLAT, _HEADS = 3, 4
"""Ranks of [batch, tokens, heads * size] and [batch, heads, tokens, size]."""
_GROUPED, _MULTI, _STANDARD = "GroupQueryAttention", "MultiHeadAttention", "Attention"
_HEAD_SINK, _GROUPED_BIAS, _CACHE_SCALES = 11, 10, (12, 13)


def heads_of(node: ir.Node, facts: Facts) -> tuple[int, int] | None:
    """Query heads and key-value heads, or None where ``node`` is no attention or does not tell."""
    if is_op(node, _GROUPED, domain=CONTRIB):
        return int_attribute(node, "num_heads", 0), int_attribute(node, "kv_num_heads", 0)
    if is_op(node, _MULTI, domain=CONTRIB):
        return (int_attribute(node, "num_heads", 0),) * 2
    if not is_op(node, _STANDARD):
        return None
    counts = [_heads_in(node, index, facts) for index in (0, 1)]
    return (counts[0], counts[1]) if counts[0] and counts[1] else None


def set_heads(node: ir.Node, queries: int, kv: int) -> None:
    """Write the numbers of heads that are left into the attributes that tell them."""
    names = {
        _GROUPED: (("num_heads", queries), ("kv_num_heads", kv)),
        _MULTI: (("num_heads", queries),),
        _STANDARD: (("q_num_heads", queries), ("kv_num_heads", kv)),
    }[node.op_type]
    for name, count in names:
        if name in node.attributes:
            node.attributes[name] = ir.AttrInt64(name, count)


def attention_axes(node: ir.Node, facts: Facts, *, by_group: bool) -> tuple[LabelledAxis, ...] | None:
    """Every axis of ``node``'s inputs and outputs that holds heads, labelled by unit.

    A unit is a key-value head with its query heads (``by_group``), or one query head; then what belongs to
    key-value heads has the label -1, and stays. None where ``node`` is no attention with heads to tell apart.
    """
    counts = heads_of(node, facts)
    if counts is None or not counts[1] or counts[0] % counts[1]:
        return None
    queries, kv = counts
    shared = queries // kv
    query_units = np.repeat(np.arange(kv), shared) if by_group else np.arange(queries)
    alone = not by_group and shared > 1
    kv_units = np.full(kv, -1) if alone else np.arange(kv)
    axes = tuple(_axes(node, query_units, kv_units, facts))
    return axes if axes else None


def _axes(node: ir.Node, query: np.ndarray, kv: np.ndarray, facts: Facts) -> Iterator[LabelledAxis]:
    grouped, standard = is_op(node, _GROUPED, domain=CONTRIB), is_op(node, _STANDARD)
    packed = grouped and input_at(node, 1) is None
    if packed:
        yield from _labelled(input_at(node, 0), np.concatenate([query, kv, kv]), facts)
    else:
        for index, units in ((0, query), (1, kv), (2, kv)):
            yield from _labelled(input_at(node, index), units, facts)
    yield from _labelled(node.outputs[0], query, facts, size_like=_size_of(node, facts))
    for value in _caches(node, 4 if standard else 3 if grouped else 6):
        yield LabelledAxis(value, -_FLAT, kv)
    bias = input_at(node, 3 if standard else _GROUPED_BIAS if grouped else 5)
    if bias is not None and _dim(bias, -_FLAT, facts) == len(query):
        yield LabelledAxis(bias, -_FLAT, query)
    if grouped:
        yield from _grouped_only(node, query, kv, facts)
    if is_op(node, _MULTI, domain=CONTRIB) and (added := input_at(node, 3)) is not None:
        yield from _labelled(added, np.concatenate([query, kv, kv]), facts)


def _grouped_only(node: ir.Node, query: np.ndarray, kv: np.ndarray, facts: Facts) -> Iterator[LabelledAxis]:
    """The number of each head's sink, and an int8 cache's scales, [1, heads, 1, size] (or one for all)."""
    if (sink := input_at(node, _HEAD_SINK)) is not None:
        yield LabelledAxis(sink, -1, query)
    for index in _CACHE_SCALES:
        scales = input_at(node, index)
        if scales is not None and _rank(scales, facts) == _HEADS:
            yield LabelledAxis(scales, -_FLAT, kv)


def _caches(node: ir.Node, first: int) -> Sequence[ir.Value]:
    """Past and present, key and value."""
    inputs = (input_at(node, first), input_at(node, first + 1))
    return [value for value in (*inputs, *node.outputs[1:3]) if value is not None]


def _labelled(
    value: ir.Value | None, units: np.ndarray, facts: Facts, size_like: int | None = None
) -> Iterator[LabelledAxis]:
    """``value`` with one label a head, in either layout."""
    if value is None:
        return
    if _rank(value, facts) == _HEADS:
        yield LabelledAxis(value, -_FLAT, units)
        return
    width = _dim(value, -1, facts)
    size = width // len(units) if width is not None else size_like
    if size is not None:
        yield LabelledAxis(value, -1, np.repeat(units, size))


def _size_of(node: ir.Node, facts: Facts) -> int | None:
    """Channels of one head of the value, where the output does not tell."""
    counts = heads_of(node, facts)
    if counts is None:
        return None
    packed = is_op(node, _GROUPED, domain=CONTRIB) and input_at(node, 1) is None
    width = _dim(node.inputs[0] if packed else input_at(node, 2), -1, facts)
    return None if width is None else width // (counts[0] + 2 * counts[1] if packed else counts[1])


def _heads_in(node: ir.Node, index: int, facts: Facts) -> int:
    value = input_at(node, index)
    if value is None:
        return 0
    if _rank(value, facts) == _HEADS:
        return _dim(value, -_FLAT, facts) or 0
    return int_attribute(node, "kv_num_heads" if index else "q_num_heads", 0)


def _rank(value: ir.Value, facts: Facts) -> int | None:
    shape = facts.shape(value)
    return len(shape) if shape is not None else None


def _dim(value: ir.Value | None, axis: int, facts: Facts) -> int | None:
    tensor = constant(value)
    if tensor is not None:
        sizes = extents(tensor)
        return sizes[axis] if len(sizes) >= -axis else None
    shape = facts.shape(value)
    return shape[axis].value if shape is not None and len(shape) >= -axis else None
