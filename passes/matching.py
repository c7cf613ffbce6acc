"""Small steps for walking and editing a graph; each says one thing about one node or value."""

from collections.abc import Iterable

import onnx_ir as ir

from onnxforge.passes.constants import constant, scalar

CONTRIB = "com.microsoft"


def is_op(node: ir.Node | None, *op_types: str, domain: str = "") -> bool:
    """Whether ``node`` is one of these operators of ``domain`` (both spellings of the main domain)."""
    if node is None or node.op_type not in op_types:
        return False
    return node.domain == domain or (not domain and node.domain == "ai.onnx")


def producer(value: ir.Value | None, *op_types: str, domain: str = "") -> ir.Node | None:
    """The node that computes ``value``, when it is one of these operators."""
    node = value.producer() if value is not None else None
    return node if is_op(node, *op_types, domain=domain) else None


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Input ``index``, or None where it is absent or left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def only_use(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``; None where several do, none does, or the graph returns it."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def split_scalar(node: ir.Node) -> tuple[ir.Value, float] | None:
    """For a two-input node with one constant of one element: the other input, and the number."""
    for data, other in ((0, 1), (1, 0)):
        number = scalar(node.inputs[other])
        value = node.inputs[data]
        if number is not None and value is not None and constant(value) is None:
            return value, number
    return None


def both_orders(node: ir.Node) -> tuple[tuple[ir.Value, ir.Value], ...]:
    """The inputs of a commutative two-input node, in both orders; empty where one is missing."""
    first, second = input_at(node, 0), input_at(node, 1)
    return ((first, second), (second, first)) if first is not None and second is not None else ()


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or the operator's default."""
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


def rank(value: ir.Value) -> int | None:
    """The rank of ``value``, where its shape is known."""
    return len(value.shape) if value.shape is not None else None


def static_dim(value: ir.Value | None, axis: int) -> int | None:
    """Dimension ``axis`` of ``value`` where it is a known number."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def make(
    op_type: str,
    inputs: Iterable[ir.Value | None],
    *,
    like: ir.Value,
    name: str,
    domain: str = "",
    attributes: dict[str, int | float | str] | None = None,
) -> ir.Node:
    """A node of one output that has the shape and dtype of ``like`` (the value it will replace)."""
    output = ir.Value(name=like.name, shape=like.shape, type=like.type)
    converted = ir.convenience.convert_attributes(attributes or {})
    return ir.Node(domain, op_type, tuple(inputs), converted, outputs=(output,), name=name)


def insert_after(anchor: ir.Node, *nodes: ir.Node) -> None:
    """Insert ``nodes`` right after ``anchor`` in its graph."""
    graph = anchor.graph
    assert graph is not None
    graph.insert_after(anchor, nodes)


def redirect(old: ir.Value, new: ir.Value) -> bool:
    """Let every reader of ``old`` read ``new``. A graph output keeps its name.

    Returns False, and changes nothing, where that would need an extra node: ``old`` is a graph output and
    ``new`` is itself an input, an initializer or another output.
    """
    if old.is_graph_output():
        if new.is_graph_output() or new.is_graph_input() or new.producer() is None:
            return False
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = None
        new.name = name
        return True
    old.replace_all_uses_with(new)
    return True


def remove_dead(nodes: Iterable[ir.Node]) -> None:
    """Remove those of ``nodes`` that nobody reads, and upwards what only they read, weights included."""
    pending = [node for node in nodes if node.graph is not None]
    while pending:
        node = pending.pop()
        graph = node.graph
        if graph is None or any(out.uses() or out.is_graph_output() for out in node.outputs):
            continue
        inputs = [value for value in node.inputs if value is not None]
        graph.remove(node, safe=True)
        for value in inputs:
            parent = value.producer()
            if parent is not None:
                pending.append(parent)
            else:
                drop_initializer(value)


def drop_initializer(value: ir.Value) -> bool:
    """Forget an initializer that nobody reads; True when it was one."""
    graph, name = value.graph, value.name
    if not isinstance(graph, ir.Graph) or name is None or graph.initializers.get(name) is not value:
        return False
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return False
    del graph.initializers[name]
    return True
