"""Where a transformer adds something to its residual stream: the parts that can be left out one by one."""

from dataclasses import dataclass

import onnx_ir as ir

from onnxforge.passes.matching import both_orders, is_op

_TEXT = ("input_ids", "inputs_embeds")


@dataclass(frozen=True)
class ResidualBranch:
    """One ``stream + f(stream)``: an attention, an MLP, or both where a layer computes them side by side."""

    join: ir.Node
    """The Add."""
    stream: ir.Value
    """What comes in, and goes on where the branch is left out."""
    output: ir.Value
    """f(stream)."""
    nodes: tuple[ir.Node, ...]
    """Those that compute f from the stream, norm first. What follows from weights or masks alone is not
    here."""


def residual_branches(graph: ir.Graph) -> tuple[ResidualBranch, ...]:
    """The branches of the residual stream that ends in the logits (or whatever the graph returns first).

    The stream is followed upwards, from Add to Add, as far as all that one operand takes from the text comes
    through the other. So no names are asked for, and what a branch is made of does not matter. In the order
    of the graph; empty where the stream is not found.
    """
    text = text_values(graph)
    found: list[ResidualBranch] = []
    value: ir.Value | None = graph.outputs[0]
    while value is not None:
        node = value.producer()
        if node is None:
            break
        branch = _branch(node, text)
        if branch is not None:
            found.append(branch)
            value = branch.stream
            continue
        above = [item for item in node.inputs if item in text]
        value = above[0] if len(above) == 1 and not found else None  # head and final norm, or the embedding
    return tuple(reversed(found))


def text_values(graph: ir.Graph) -> set[ir.Value]:
    """All values that hang on the tokens' ids, by more than their number."""
    pending = [value for value in graph.inputs if value.name in _TEXT]
    reached: set[ir.Value] = set(pending)
    while pending:
        for use in pending.pop().uses():
            if not is_op(use.node, "Shape"):
                new = [value for value in use.node.outputs if value not in reached]
                reached.update(new)
                pending += new
    return reached


def _branch(join: ir.Node, text: set[ir.Value]) -> ResidualBranch | None:
    if not is_op(join, "Add") or not all(value in text for value in join.inputs):
        return None
    for stream, output in both_orders(join):
        nodes = _between(stream, output, text)
        if nodes:
            return ResidualBranch(join, stream, output, nodes)
    return None


def _between(stream: ir.Value, output: ir.Value, text: set[ir.Value]) -> tuple[ir.Node, ...]:
    """The nodes from ``stream`` to ``output``; none where ``output`` takes text from anywhere else."""
    seen: set[ir.Node] = set()
    pending = [output]
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None:
            return ()  # the ids themselves
        if node not in seen:
            seen.add(node)
            pending += [item for item in node.inputs if item in text and item is not stream]
    graph = next(iter(seen)).graph
    assert graph is not None
    return tuple(node for node in graph if node in seen)
