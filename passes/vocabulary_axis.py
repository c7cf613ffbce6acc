"""Where a graph has one entry for each token: the tables that ids look up, and what the logits are made by.

::

    input_ids ─ Gather(E [V, H]) ─ ... ─ MatMul(x, W [H, V] or Transpose(E)) ─ Add(b [V]) ─ logits [.., V]
                   rows of E                       columns of W, rows of E           b

Found by following the ids forwards and the logits backwards, through operators that keep tokens apart; a node
that might mix them, or that reads a table otherwise, is refused by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxforge.passes.base import PassRefused
from onnxforge.passes.constants import constant, extents, readable
from onnxforge.passes.matching import input_at, int_attribute, is_op
from onnxforge.passes.slicing import slice_bounds

_MOVES_IDS = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Expand", "Flatten")
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Tanh", "Cast", "Identity", "Clip", "Sigmoid")
_OVER_TOKENS = ("Softmax", "LogSoftmax")
"""They put what the removed tokens had on the kept ones, in proportion: which is what is wanted."""


@dataclass
class VocabularyAxis:
    """Everything that has to change with the vocabulary."""

    size: int = 0
    """V, of the table that ids look up."""
    constants: dict[ir.Value, int] = field(default_factory=dict)
    """Constants and the axis on which they have an entry for each token."""
    values: list[ir.Value] = field(default_factory=list)
    """Computed values whose last axis is the vocabulary."""
    compared: list[tuple[ir.Node, int]] = field(default_factory=list)
    """Nodes that hold ids against a constant id, and the input that this is."""


def vocabulary_axis(graph: ir.Graph) -> VocabularyAxis:
    """Find it.

    Raises:
        PassRefused: a node that is not understood, by name; or nothing looks ids up.
    """
    found = VocabularyAxis()
    allowed: set[ir.Node] = set()
    ids = next((value for value in graph.inputs if value.name == "input_ids"), None)
    if ids is not None:
        _follow_ids(ids, found, allowed)
    if not found.size:
        raise _refused("no table that the input `input_ids` looks up was found: is this a text model?")
    logits = next((value for value in graph.outputs if value.name == "logits"), None)
    if logits is not None and _speaks_tokens(graph, logits, found.size):
        _follow_logits(logits, found, allowed)
    for value in (*found.constants, *found.values):
        strangers = [use.node for use in value.uses() if use.node not in allowed]
        if strangers:
            raise _refused(f"{_named(strangers[0])} reads {value.name!r}, which has an entry for each token")
        if value.is_graph_output() and value is not logits:
            raise _refused(f"the graph returns {value.name!r}, which has an entry for each token")
    return found


def _follow_ids(ids: ir.Value, found: VocabularyAxis, allowed: set[ir.Node]) -> None:
    pending, seen = [ids], {ids}
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            raise _refused(f"the graph returns token ids as {value.name!r}: their meaning would change")
        for use in value.uses():
            node, index = use.node, use.idx
            if is_op(node, "Shape", "Size"):
                continue
            if is_op(node, "Gather") and index == 1:
                _add_table(node, found, allowed)
            elif is_op(node, "Equal") and _same_id(node, 1 - index) is not None:
                found.compared.append((node, 1 - index))
            elif is_op(node, *_MOVES_IDS) and index == 0:
                pending += [output for output in node.outputs if output not in seen]
                seen.update(node.outputs)
            else:
                raise _refused(f"{_named(node)} reads token ids ({value.name!r}) in a way not understood")


def _add_table(node: ir.Node, found: VocabularyAxis, allowed: set[ir.Node]) -> None:
    table = node.inputs[0]
    tensor = constant(table)
    if table is None or tensor is None or not tensor.shape or int_attribute(node, "axis", 0):
        raise _refused(f"{_named(node)} looks token ids up in what is no constant table of one row for each")
    rows = extents(tensor)[0]
    if found.size and rows != found.size:
        raise _refused(f"{_named(node)} looks token ids up in {rows} rows, another table has {found.size}")
    found.size = rows
    found.constants[table] = 0
    allowed.add(node)


def _same_id(node: ir.Node, index: int) -> np.ndarray | None:
    """The ids that ``node`` compares with, where that input is a constant of integers."""
    array = readable(input_at(node, index))
    return array if array is not None and array.dtype.kind in "iu" else None


def _speaks_tokens(graph: ir.Graph, logits: ir.Value, size: int) -> bool:
    """Whether the last axis of the logits is the vocabulary: always, where a cache shows a generator."""
    if any((value.name or "").startswith("past_key_values.") for value in graph.inputs):
        return True
    last = logits.shape[-1] if logits.shape is not None and len(logits.shape) else None
    return last == size if isinstance(last, int) else _columns_behind(logits) == size


def _columns_behind(value: ir.Value) -> int | None:
    """N of the projection that ends in ``value``, where one is found."""
    node = value.producer()
    while node is not None and is_op(node, *_ELEMENTWISE, *_OVER_TOKENS):
        computed = [item for item in node.inputs if item is not None and constant(item) is None]
        node = computed[0].producer() if len(computed) == 1 else None
    weight = input_at(node, 1) if node is not None and is_op(node, "MatMul") else None
    shape = weight.shape if weight is not None else None
    last = shape[-1] if shape is not None and len(shape) == 2 else None
    return last if isinstance(last, int) else None


def _follow_logits(logits: ir.Value, found: VocabularyAxis, allowed: set[ir.Node]) -> None:
    value = logits
    while True:
        found.values.append(value)
        node = value.producer()
        if node is None:
            raise _refused(f"{value.name!r} has an entry for each token, and nothing computes it")
        allowed.add(node)
        if is_op(node, "MatMul"):
            _add_head(node, found, allowed)
            return
        computed = [item for item in node.inputs if item is not None and constant(item) is None]
        if len(computed) != 1 or not _keeps_apart(node, value):
            raise _refused(f"{_named(node)} makes {value.name!r}, and may mix what belongs to each token")
        for item in node.inputs:
            tensor = constant(item)
            if item is not None and tensor is not None and is_op(node, *_ELEMENTWISE):
                _add_bias(node, item, extents(tensor), found)
        value = computed[0]


def _keeps_apart(node: ir.Node, value: ir.Value) -> bool:
    """Whether each entry of the last axis is made of the same entry of the input, or of all in proportion."""
    if is_op(node, *_ELEMENTWISE):
        return True
    last = len(value.shape) - 1 if value.shape is not None else None
    if is_op(node, *_OVER_TOKENS):
        return int_attribute(node, "axis", -1) in (-1, last)
    if is_op(node, "Slice"):
        bounds = slice_bounds(node)
        return bounds is not None and all(axis >= 0 and axis != last for axis, *_ in bounds)
    return False


def _add_bias(node: ir.Node, value: ir.Value, shape: Sequence[int], found: VocabularyAxis) -> None:
    if not shape or shape[-1] == 1:
        return
    if shape[-1] != found.size:
        raise _refused(f"{_named(node)} reads {value.name!r}: {shape[-1]} entries for {found.size} tokens")
    found.constants[value] = len(shape) - 1


def _add_head(node: ir.Node, found: VocabularyAxis, allowed: set[ir.Node]) -> None:
    weight = node.inputs[1]
    turned = weight.producer() if weight is not None else None
    if is_op(turned, "Transpose") and turned is not None and weight is not None:
        source = turned.inputs[0]
        perm = turned.attributes.get("perm")
        if constant(source) is not None and (perm is None or tuple(perm.as_ints()) == (1, 0)):
            allowed.add(turned)
            found.values.append(weight)
            weight, axis = source, 0
        else:
            weight = None
    else:
        axis = 1
    tensor = constant(weight)
    if weight is None or tensor is None or len(tensor.shape) != 2:
        raise _refused(f"{_named(node)} makes the logits by what is no constant matrix [hidden, tokens]")
    if extents(tensor)[axis] != found.size:
        logits = extents(tensor)[axis]
        raise _refused(f"{_named(node)} makes {logits} logits, and the ids look up {found.size} rows")
    if found.constants.get(weight, axis) != axis:
        raise _refused(f"{_named(node)} reads {weight.name!r} along another axis than the ids do")
    found.constants[weight] = axis


def _named(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}"


def _refused(what: str) -> PassRefused:
    return PassRefused(
        f"prune-vocabulary: {what}. Nothing was changed. Put the pass in front of quantization, or leave "
        "it out."
    )
