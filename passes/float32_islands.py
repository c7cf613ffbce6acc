"""Where float16 would lose the meaning of a computation: the nodes that stay in float32.

* **Squares, sums and roots** (``Pow``, ``ReduceMean``, ``Sqrt``, ... of a norm that was not fused): float16
  ends at 65504, the square of 256, and an epsilon of 1e-12 is zero in it.
* **Exponentials and logarithms** that stand alone: exp(12) is beyond float16.
* **Angles**: all that ``Sin`` and ``Cos`` are computed from. Not every position above 2048 is a float16.
* **Counts** (``Range``, ``CumSum``): the same.
* **Operators that know float32 only**, such as ``DynamicQuantizeLinear``.
* What lies between two such nodes and nowhere else, such as the addition of an epsilon: no value is rounded
  on the way.
"""

import re

import onnx_ir as ir

from onnxforge.passes.constants import constant
from onnxforge.passes.matching import is_op

# ruff: noqa: SIM905  (a paragraph of names reads better than lines of strings)
_WIDE = frozenset(
    "Pow ReduceMean ReduceSum ReduceSumSquare ReduceL1 ReduceL2 ReduceProd ReduceLogSumExp Sqrt Reciprocal "
    "Exp Log Softplus Sin Cos Range CumSum DynamicQuantizeLinear DynamicQuantizeMatMul "
    "MatMulIntegerToFloat".split()
)
_ANGLES = ("Sin", "Cos")


def float32_islands(graph: ir.Graph, skip: str) -> set[ir.Node]:
    """The nodes of ``graph`` that stay float32; ``skip`` finds more of them by name."""
    nodes = [node for node in graph if _computes_single(node)]
    islands = {node for node in nodes if _is_wide(node) or _is_skipped(node, skip)}
    for node in [node for node in islands if node.op_type in _ANGLES]:
        islands |= _upstream(node)
    growing = True
    while growing:
        inner = {node for node in nodes if node not in islands and _lies_between(node, islands)}
        growing = bool(inner)
        islands |= inner
    return islands


def reads_any_type(node: ir.Node) -> bool:
    """A Cast takes what comes: nothing has to be cast in front of it."""
    return is_op(node, "Cast")


def _computes_single(node: ir.Node) -> bool:
    """Float32 goes in or comes out."""
    values = [*node.inputs, *node.outputs]
    return any(value is not None and value.dtype is ir.DataType.FLOAT for value in values)


def _is_wide(node: ir.Node) -> bool:
    squares = is_op(node, "Mul") and node.inputs[0] is node.inputs[1]
    return squares or (node.op_type in _WIDE and any(out.dtype is ir.DataType.FLOAT for out in node.outputs))


def _is_skipped(node: ir.Node, skip: str) -> bool:
    if not skip:
        return False
    names = [node.name, *(value.name for value in node.inputs if value is not None and constant(value))]
    return any(re.search(skip, name or "") for name in names)


def _upstream(node: ir.Node) -> set[ir.Node]:
    """``node`` and everything float32 that it is computed from."""
    found, pending = {node}, [node]
    while pending:
        for value in pending.pop().inputs:
            parent = value.producer() if value is not None and value.dtype is ir.DataType.FLOAT else None
            if parent is not None and parent not in found:
                found.add(parent)
                pending.append(parent)
    return found


def _lies_between(node: ir.Node, islands: set[ir.Node]) -> bool:
    """All readers are in an island, and all float32 that it computes from comes from one (or is constant)."""
    outputs = [out for out in node.outputs if out.uses() or out.is_graph_output()]
    if any(out.is_graph_output() for out in outputs) or not outputs:
        return False
    if any(user not in islands for out in outputs for user, _ in out.uses()):
        return False
    if is_op(node, "Cast"):
        return True
    singles = [v for v in node.inputs if v is not None and v.dtype is ir.DataType.FLOAT and not constant(v)]
    return all(value.producer() in islands for value in singles)
