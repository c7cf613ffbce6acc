"""One graph that holds a model's MatMuls in two forms and chooses between them row by row.

::

                      +-> MatMul(DQ(Q(x)), DQ(W8)) -+
    x [B, S, K]  -----+                             +-> Where(switch[i], ., .) -> y [B, S, N]
                      +-> MatMul(x, W) -------------+

``switch`` bool [sites, B, 1, 1] is an input, so that one session answers what every combination of forms
does, and one run answers it for B combinations at once.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass
from onnxforge.passes.constants import add_array
from onnxforge.passes.kept_float import keep_float
from onnxforge.passes.matching import is_op, rank, redirect

SWITCH = "onnxforge.switch"
_TOKENS = 3
"""Rank of [B, S, N]: what the switch broadcasts over."""


@dataclass(frozen=True)
class SwitchedGraph:
    """The graph of both forms."""

    model: ir.Model
    positions: tuple[int, ...]
    """Site i is the MatMul at ``positions[i]`` among :func:`products` of the model it was made from."""


def products(model: ir.Model) -> list[ir.Node]:
    """Every MatMul of the main graph whose result is [B, S, N], in order: what can be switched."""
    return [node for node in model.graph if is_op(node, "MatMul") and rank(node.outputs[0]) == _TOKENS]


def switched_graph(model: ir.Model, quantize: GraphPass) -> SwitchedGraph:
    """A copy of ``model`` in which each of its products that ``quantize`` rewrites exists in both forms.

    ``model`` stays as it is. ``quantize`` is a pass that gives products other operands and honours the mark
    of :mod:`onnxforge.passes.kept_float`; products that cannot be switched are marked, in the copy.
    """
    copy = model.clone()  # with what calibration left on the values
    nodes = products(copy)
    for node in set(copy.graph) - set(nodes):
        keep_float(node, "it cannot be switched row by row")
    twins = [_twin(copy.graph, node) for node in nodes]
    before = [tuple(node.inputs) for node in nodes]
    with notes.listen():  # what the trial rewrites is not news
        quantize(copy)
    sites = [position for position, node in enumerate(nodes) if tuple(node.inputs) != before[position]]
    shape = ir.Shape([len(sites), "batch", 1, 1])
    switch = ir.Value(name=SWITCH, shape=shape, type=ir.TensorType(ir.DataType.BOOL))
    copy.graph.inputs.append(switch)
    for site, position in enumerate(sites):
        _choose(copy.graph, nodes[position], twins[position], switch, site)
    return SwitchedGraph(copy, tuple(sites))


def _twin(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """The same product once more, to stay as it is: it keeps the float weight alive, too."""
    twin = ir.Node("", "MatMul", tuple(node.inputs), name=f"{node.name}/float")
    twin.outputs[0].shape, twin.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    graph.insert_before(node, twin)
    keep_float(twin, "it is the float form")
    return twin


def _choose(graph: ir.Graph, node: ir.Node, twin: ir.Node, switch: ir.Value, site: int) -> None:
    result = node.outputs[0]
    index = add_array(graph, f"{SWITCH}.{site}", np.array(site, dtype=np.int64))
    chosen = ir.Node("", "Gather", (switch, index), name=f"{node.name}/switch")
    integer = ir.Node("", "MatMul", tuple(node.inputs), name=f"{node.name}/int8")
    forms = (chosen.outputs[0], integer.outputs[0], twin.outputs[0])
    either = ir.Node("", "Where", forms, name=f"{node.name}/either")
    for value in (integer.outputs[0], either.outputs[0]):
        value.shape, value.type = result.shape, result.type
    graph.insert_after(node, (chosen, integer, either))
    redirect(result, either.outputs[0])
    graph.remove(node, safe=True)
