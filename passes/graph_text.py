"""Small pieces of graph written as ONNX text, spliced into a graph that is being built."""

from collections.abc import Sequence

import onnx_ir as ir

_HEADER = '<ir_version: 10, opset_import: ["" : {opset}, "ai.onnx.ml" : 4, "com.microsoft" : 1]>\n'


def splice(
    text: str, inputs: Sequence[ir.Value], prefix: str, opset: int
) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes of ``text``, reading ``inputs`` where it names its own, and its outputs.

    ``text`` is ``name (inputs) => (outputs) { nodes }`` in onnx.parser's syntax; inputs go by position. Nodes
    and values get ``prefix`` before their names. The nodes belong to no graph yet.
    """
    graph = ir.from_onnx_text(_HEADER.format(opset=opset) + text).graph
    if len(graph.inputs) != len(inputs):
        raise ValueError(f"{graph.name}: takes {len(graph.inputs)} values, got {len(inputs)}")
    nodes, outputs = list(graph), list(graph.outputs)
    for node in graph.all_nodes():
        for value in node.outputs:
            value.name = f"{prefix}/{value.name}"
        node.name = f"/{node.outputs[0].name}"
    for value in outputs:  # declared in the text for the parser's sake: the graph around knows better
        value.shape = None
    for own, given in zip(graph.inputs, inputs, strict=True):
        own.replace_all_uses_with(given)
    graph.outputs.clear()
    graph.remove(nodes)
    return nodes, outputs
