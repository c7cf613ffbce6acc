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
from onnxforge.passes.activation_range import annotate, range_of
from onnxforge.passes.base import GraphPass
from onnxforge.passes.constants import add_array
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
    """Every MatMul of the main graph, in order."""
    return [node for node in model.graph if is_op(node, "MatMul")]


def switched_graph(model: ir.Model, quantize: GraphPass) -> SwitchedGraph:
    """A copy of ``model`` in which each MatMul that ``quantize`` rewrites exists in both forms.

    ``model`` stays as it is. ``quantize`` has to change the operands of MatMuls and nothing else that the
    float form reads. MatMuls whose result is not [B, S, N] stay float and are no sites.
    """
    copy = _copy(model)
    nodes = products(copy)
    operands = [tuple(node.inputs) for node in nodes]
    with notes.listen():  # what the trial rewrites is not news
        quantize(copy)
    sites = [
        position
        for position, node in enumerate(nodes)
        if tuple(node.inputs) != operands[position] and rank(node.outputs[0]) == _TOKENS
    ]
    shape = ir.Shape([len(sites), "batch", 1, 1])
    switch = ir.Value(name=SWITCH, shape=shape, type=ir.TensorType(ir.DataType.BOOL))
    copy.graph.inputs.append(switch)
    for site, position in enumerate(sites):
        _both(copy.graph, nodes[position], operands[position], switch, site)
    for position in set(range(len(nodes))) - set(sites):
        for index, operand in enumerate(operands[position]):
            nodes[position].replace_input_with(index, operand)
    return SwitchedGraph(copy, tuple(sites))


def _both(
    graph: ir.Graph, node: ir.Node, operands: tuple[ir.Value | None, ...], switch: ir.Value, site: int
) -> None:
    result = node.outputs[0]
    index = add_array(graph, f"{SWITCH}.{site}", np.array(site, dtype=np.int64))
    chosen = ir.Node("", "Gather", (switch, index), name=f"{node.name}/switch")
    integer = ir.Node("", "MatMul", tuple(node.inputs), name=f"{node.name}/int8")
    plain = ir.Node("", "MatMul", operands, name=f"{node.name}/float")
    either = ir.Node(
        "", "Where", (chosen.outputs[0], integer.outputs[0], plain.outputs[0]), name=f"{node.name}/either"
    )
    made = (integer.outputs[0], plain.outputs[0], either.outputs[0])
    for value in made:
        value.shape, value.type = result.shape, result.type
    graph.insert_after(node, (chosen, integer, plain, either))
    redirect(result, either.outputs[0])
    graph.remove(node, safe=True)


def _copy(model: ir.Model) -> ir.Model:
    """A clone that keeps what calibration saw, which a plain clone forgets."""
    copy = model.clone()
    mine = {value.name: value for value in _values(copy.graph)}
    for value in _values(model.graph):
        if (found := range_of(value)) is not None:
            annotate(mine[value.name], found)
    return copy


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]
