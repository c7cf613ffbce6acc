"""Nodes that change nothing, and shape arguments that can be said as constants.

=========================================  ==========================================
before                                     after
=========================================  ==========================================
Identity, Dropout, Cast to the same dtype  the input
Reshape/Expand/Slice to the same shape     the input
x * 1, x / 1, x + 0, x - 0, True and x     x
Transpose by the identity, Concat of one   the input
Reshape(x, [batch, seq, -1, 64])           Reshape(x, [0, 0, -1, 64])
=========================================  ==========================================
"""

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import add_array, integers, readable
from onnxforge.passes.dims import Dim
from onnxforge.passes.matching import input_at, int_attribute, is_op, split_scalar
from onnxforge.passes.shapes import Facts, Shape, reshape

_NEUTRAL = {"Mul": 1.0, "Div": 1.0, "Add": 0.0, "Sub": 0.0}


def neutral_input(node: ir.Node, facts: Facts) -> ir.Value | None:
    """The input that ``node`` passes through unchanged; None where the node does something."""
    data = input_at(node, 0)
    if data is None or node.domain not in ("", "ai.onnx"):
        return None
    if is_op(node, "Identity"):
        return data
    if is_op(node, "Dropout"):
        return data if _dropout_is_off(node) else None
    if is_op(node, "Cast"):
        return data if data.dtype is not None and int(data.dtype) == int_attribute(node, "to", 0) else None
    if is_op(node, "CastLike"):
        like = input_at(node, 1)
        return data if like is not None and data.dtype is not None and data.dtype == like.dtype else None
    if is_op(node, "Transpose"):
        perm = node.attributes.get("perm")
        return data if perm is not None and list(perm.as_ints()) == sorted(perm.as_ints()) else None
    if is_op(node, "Concat"):
        return data if len(node.inputs) == 1 else None
    if is_op(node, "Reshape", "Expand", "Slice"):
        return data if _same_shape(facts.shape(data), facts.shape(node.outputs[0])) else None
    if is_op(node, *_NEUTRAL):
        return _neutral_arithmetic(node, facts)
    if is_op(node, "And"):
        return _and_true(node, facts)
    return None


def _same_shape(left: Shape | None, right: Shape | None) -> bool:
    return left is not None and left == right


def _dropout_is_off(node: ir.Node) -> bool:
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return False
    training = input_at(node, 2)
    flag = readable(training, 1)
    return training is None or (flag is not None and not bool(flag.reshape(-1)[0]))


def _neutral_arithmetic(node: ir.Node, facts: Facts) -> ir.Value | None:
    parts = split_scalar(node)
    if parts is None or parts[1] != _NEUTRAL[node.op_type]:
        return None
    data = parts[0]
    if node.op_type in ("Div", "Sub") and data is not node.inputs[0]:
        return None
    return data if _same_shape(facts.shape(data), facts.shape(node.outputs[0])) else None


def _and_true(node: ir.Node, facts: Facts) -> ir.Value | None:
    for data, mask in ((0, 1), (1, 0)):
        array = readable(node.inputs[mask])
        kept = _same_shape(facts.shape(node.inputs[data]), facts.shape(node.outputs[0]))
        if array is not None and array.all() and kept:
            return node.inputs[data]
    return None


def constant_reshape(node: ir.Node, facts: Facts) -> bool:
    """Give a Reshape whose target is known by name a constant target; True when the node changed.

    A dimension that equals the input's at the same place becomes 0 (copy), and at most one other may stay
    open as -1. A target that needs more than that is left as it was.
    """
    if not is_op(node, "Reshape") or integers(node.inputs[1]) is not None:
        return False
    source, target = facts.shape(node.inputs[0]), facts.sizes(node.inputs[1])
    if source is None or target is None:
        return False
    literal_zero = any(not dim.terms for dim in target)
    target = reshape(source, target, bool(int_attribute(node, "allowzero", 0)))
    if target is None or (literal_zero and int_attribute(node, "allowzero", 0)):
        return False
    spelled = [_spelled(dim, axis, source) for axis, dim in enumerate(target)]
    if spelled.count(None) > 1:
        return False
    array = np.array([-1 if number is None else number for number in spelled], dtype=np.int64)
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    node.replace_input_with(1, add_array(graph, f"{node.outputs[0].name}.shape", array))
    node.attributes.pop("allowzero", None)
    return True


def _spelled(dim: Dim, axis: int, source: Shape) -> int | None:
    if dim.value is not None:
        return dim.value
    return 0 if axis < len(source) and source[axis] == dim else None
