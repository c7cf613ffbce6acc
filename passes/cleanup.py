"""The last pass: what a reader of the finished file should not have to look past."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes import common

from onnxforge.passes.base import GraphPass

IR_VERSION = 10
"""The newest version that every runtime of interest loads (onnxruntime-genai 0.18 with its own ONNX Runtime
included) and the oldest that knows opset 23's types."""


@dataclass(frozen=True)
class Cleanup(GraphPass):
    """Tidy a finished graph; what it computes does not change.

    * nodes, initializers, functions and opset imports that nothing uses are dropped;
    * nodes and values get unique names, unnamed nodes are named after their first output;
    * exporter's notes on nodes, values and the graph (doc strings, stack traces) are dropped; the model's own
      metadata stays;
    * nodes are in topological order, the IR version is 10.
    """

    summary: ClassVar[str] = "drop what is unused, unique names, one IR version"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Tidy in place; ``modified`` says whether anything was untidy."""
        changed = False
        for tidy in (
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
            common.RemoveUnusedOpsetsPass(),
        ):
            changed |= bool(tidy(model).modified)
        changed |= _fix_names(model)
        changed |= _drop_notes(model.graph)
        changed |= _name_nodes(model.graph)
        changed |= _sort(model.graph)
        if model.ir_version != IR_VERSION:
            model.ir_version, changed = IR_VERSION, True
        return ir.passes.PassResult(model, modified=changed)


def _fix_names(model: ir.Model) -> bool:
    """Unique names. An output without a name is one that its node leaves out, and stays so."""
    outputs = [output for node in model.graph.all_nodes() for output in node.outputs]
    left_out = [output for output in outputs if output.name == ""]
    for index, output in enumerate(left_out):  # names that nobody has, so that the fix keeps its hands off
        output.name = f"left-out {index}"
    changed = bool(common.NameFixPass()(model).modified)
    for output in left_out:
        output.name = ""
    return changed


def _drop_notes(graph: ir.Graph) -> bool:
    changed = False
    values = [*graph.inputs, *graph.initializers.values()]
    nodes = tuple(graph.all_nodes())
    values += [output for node in nodes for output in node.outputs]
    noted: list[ir.Node | ir.Value | ir.Graph] = [*nodes, *values, graph]
    for item in noted:
        if item.doc_string or item.metadata_props:
            item.doc_string = None
            item.metadata_props.clear()
            changed = True
    return changed


def _name_nodes(graph: ir.Graph) -> bool:
    taken = {node.name for node in graph.all_nodes()}
    changed = False
    for node in graph.all_nodes():
        if not node.name:
            name, index = f"{node.op_type}_{node.outputs[0].name}", 0
            while name in taken:
                index += 1
                name = f"{node.op_type}_{node.outputs[0].name}_{index}"
            node.name, changed = name, True
            taken.add(name)
    return changed


def _sort(graph: ir.Graph) -> bool:
    before = tuple(graph)
    if _is_sorted(before):
        return False
    graph.sort()
    return True


def _is_sorted(nodes: tuple[ir.Node, ...]) -> bool:
    position = {node: index for index, node in enumerate(nodes)}
    for index, node in enumerate(nodes):
        for value in node.inputs:
            parent = value.producer() if value is not None else None
            if parent is not None and position.get(parent, -1) > index:
                return False
    return True
