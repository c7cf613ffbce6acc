"""Grow a graph of one layer per kind into the graph of the whole model, before any weight is read.

::

    preamble -> Enter(0) .. layer nodes .. Exit(0) -> Enter(1) .. Exit(1) -> tail          traced
    preamble -> copy of kind k(0) -> copy of kind k(1) -> ... -> copy of kind k(n-1) -> tail    stamped

The nodes of a layer are those that depend on what enters it, on its weights or on its past; what is left
between the markers (masks, rotary tables, shapes) is shared and stays in the preamble.
"""

from dataclasses import dataclass

import onnx_ir as ir

from onnxforge.models.skeleton import Skeleton
from onnxforge.models.tidy import SCOPE
from onnxforge.models.trace import ENTER, EXIT, MARKER_DOMAIN


@dataclass(frozen=True)
class _Template:
    """One traced layer: its nodes in order, and the values by which it touches the rest of the graph."""

    position: int
    nodes: tuple[ir.Node, ...]
    entering: ir.Value
    leaving: ir.Value
    weights: tuple[ir.Value, ...]
    past: tuple[ir.Value, ...]
    present: tuple[ir.Value, ...]


def stamp(model: ir.Model, skeleton: Skeleton) -> None:
    """Replace the traced layers by all layers of the model, in place, and drop the markers.

    Raises:
        AssertionError: the traced graph does not have the shape that the markers promise (an internal error).
    """
    graph = model.graph
    enters, exits = _markers(graph, ENTER), _markers(graph, EXIT)
    templates = [
        _template(graph, skeleton, position, enters[position], exits[position]) for position in sorted(enters)
    ]
    hidden = enters[0].inputs[0]
    assert hidden is not None
    copies = []
    for index, kind in enumerate(skeleton.kinds):
        copy = _Copy(templates[kind], skeleton.layers, index)
        hidden = copy.make(hidden)
        copies.append(copy)
    leaving = exits[len(templates) - 1].outputs[0]
    if leaving.is_graph_output():
        hidden.name = leaving.name
    leaving.replace_all_uses_with(hidden, replace_graph_outputs=True)
    _replace_layers(graph, templates, copies)
    _lift_scopes(graph, skeleton.layers, copies)
    graph.opset_imports.pop(MARKER_DOMAIN, None)


def _replace_layers(graph: ir.Graph, templates: "list[_Template]", copies: "list[_Copy]") -> None:
    graph.outputs[:] = [
        *(v for v in graph.outputs if not any(v in t.present for t in templates)),
        *(value for copy in copies for value in copy.present),
    ]
    traced = [node for template in templates for node in template.nodes]
    marks = [node for node in graph if node.domain == MARKER_DOMAIN]
    graph.remove([*traced, *marks], safe=True)
    for template in templates:
        for weight in template.weights:
            del graph.initializers[weight.name or ""]
    for template in templates:
        for value in template.past:
            # What is left of the uses asks for the length of the past, and every layer's is the same.
            value.replace_all_uses_with(copies[0].past[0])
    graph.inputs[:] = [
        *(v for v in graph.inputs if not any(v in t.past for t in templates)),
        *(value for copy in copies for value in copy.past),
    ]
    for copy in copies:
        graph.extend(copy.nodes)
        for weight in copy.weights:
            graph.initializers[weight.name or ""] = weight


def _lift_scopes(graph: ir.Graph, layers: str, copies: "list[_Copy]") -> None:
    """What the layers share was traced inside one of them, and is called after their parent instead."""
    owned = {node for copy in copies for node in copy.nodes}
    for node in graph:
        if node not in owned and node.metadata_props.get(SCOPE, "").startswith(f"{layers}."):
            node.metadata_props[SCOPE] = layers.rpartition(".")[0]


def _markers(graph: ir.Graph, kind: str) -> dict[int, ir.Node]:
    found = {
        node.attributes["layer"].as_int(): node
        for node in graph
        if node.domain == MARKER_DOMAIN and node.op_type == kind
    }
    assert sorted(found) == list(range(len(found))), f"{kind} markers {sorted(found)} are not 0..n-1"
    return found


def _template(
    graph: ir.Graph, skeleton: Skeleton, position: int, enter: ir.Node, leave: ir.Node
) -> _Template:
    prefix = f"{skeleton.layers}.{position}."
    weights = tuple(v for name, v in graph.initializers.items() if name.startswith(prefix))
    past = tuple(v for v in graph.inputs if (v.name or "").startswith(f"past_key_values.{position}."))
    present = tuple(v for v in graph.outputs if (v.name or "").startswith(f"present.{position}."))
    tainted = {enter.outputs[0], *weights, *past}
    nodes = []
    for node in graph:
        if node.domain == MARKER_DOMAIN:
            continue
        # The length of the past is the same for all layers: a mask made of it belongs to none of them.
        if node.op_type == "Shape" and node.inputs[0] in past:
            continue
        if any(value in tainted for value in node.inputs):
            tainted.update(node.outputs)
            nodes.append(node)
    inside = {*nodes, leave}
    for node in nodes:
        for value in node.outputs:
            outside = [use.node.name for use in value.uses() if use.node not in inside]
            assert not outside, f"layer {position} leaks {value.name} to {outside}"
    leaving = leave.inputs[0]
    assert leaving is not None
    return _Template(position, tuple(nodes), enter.outputs[0], leaving, weights, past, present)


class _Copy:
    """One layer of the full model, made from the template of its kind."""

    def __init__(self, template: _Template, layers: str, index: int) -> None:
        self.template = template
        self.traced_prefix = f"{layers}.{template.position}"
        self.prefix = f"{layers}.{index}"
        self.index = index
        self.values: dict[ir.Value, ir.Value] = {}
        self.weights = [self._weight(value) for value in template.weights]
        self.past = [self._renumbered(value) for value in template.past]
        self.present = [self._renumbered(value) for value in template.present]
        self.nodes: list[ir.Node] = []

    def make(self, hidden: ir.Value) -> ir.Value:
        """Make the layer's nodes, reading ``hidden``; the hidden state that leaves them."""
        self.values[self.template.entering] = hidden
        self.nodes = [self._node(node) for node in self.template.nodes]
        return self.values[self.template.leaving]

    def _weight(self, weight: ir.Value) -> ir.Value:
        name = self.prefix + (weight.name or "").removeprefix(self.traced_prefix)
        copy = ir.Value(name=name, shape=weight.shape, type=weight.type, const_value=weight.const_value)
        self.values[weight] = copy
        return copy

    def _renumbered(self, value: ir.Value) -> ir.Value:
        group, _, kv = (value.name or "").split(".")
        self.values[value] = ir.Value(name=f"{group}.{self.index}.{kv}", shape=value.shape, type=value.type)
        return self.values[value]

    def _node(self, node: ir.Node) -> ir.Node:
        outputs = []
        for value in node.outputs:
            if value not in self.values:
                self.values[value] = ir.Value(name=value.name, shape=value.shape, type=value.type)
            outputs.append(self.values[value])
        scope = node.metadata_props.get(SCOPE, "")
        inner = scope.removeprefix(self.traced_prefix) if scope.startswith(f"{self.traced_prefix}.") else ""
        return ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else self.values.get(value, value) for value in node.inputs],
            list(node.attributes.values()),
            outputs=outputs,
            metadata_props={SCOPE: self.prefix + inner},
        )
