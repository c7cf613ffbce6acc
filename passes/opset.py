"""Raising an old graph to a newer operator set.

Only operators whose newer versions mean the same, or differ by an attribute that became an input, are
raised; one that is not known to be safe keeps the whole graph where it was.
"""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.constants import add_array
from onnxforge.passes.matching import rank
from onnxforge.passes.operator_families import REDUCTIONS, SAME_MEANING

_OLDEST = 11
_MIN_IR_VERSION = 10


def upgrade_opset(model: ir.Model, target: int) -> bool:
    """Raise the main domain to ``target``; True when the model changed.

    A graph older than opset 11, or with an operator outside the safe list, is left alone with a note.
    """
    version = model.opset_imports.get("", 1)
    if version >= target:
        return False
    nodes = [node for node in model.graph.all_nodes() if node.domain in ("", "ai.onnx")]
    blockers = sorted({node.op_type for node in nodes if not _can_be_raised(node, version, target)})
    if version < _OLDEST or blockers:
        found = f"opset {version}" if version < _OLDEST else f"{', '.join(blockers)} at opset {version}"
        reason = f"{found} may mean something else at opset {target}; export the model at a newer opset"
        notes.near_miss(f"opset {target}", model.graph.name, reason)
        return False
    for node in nodes:
        adapt = _ADAPTERS.get(node.op_type)
        if adapt is not None:
            adapt(node)
    model.opset_imports[""] = target
    model.ir_version = max(model.ir_version, _MIN_IR_VERSION)
    return True


def _can_be_raised(node: ir.Node, version: int, target: int) -> bool:
    try:
        old = onnx.defs.get_schema(node.op_type, version).since_version
        new = onnx.defs.get_schema(node.op_type, target).since_version
    except onnx.defs.SchemaError:
        return False
    if old == new or node.op_type in SAME_MEANING:
        return True
    if node.op_type in ("Softmax", "LogSoftmax"):
        return old >= 13 or _is_last_axis(node)
    return node.op_type in _ADAPTERS


def _is_last_axis(node: ir.Node) -> bool:
    """Before opset 13 Softmax flattened all axes from ``axis`` on; over the last one both mean the same."""
    axis = node.attributes.get("axis")
    if axis is None or node.inputs[0] is None:
        return False
    return axis.as_int() == -1 or axis.as_int() + 1 == rank(node.inputs[0])


def _ints_to_input(node: ir.Node, name: str) -> None:
    attribute = node.attributes.pop(name, None)
    if attribute is None:
        return
    graph = node.graph
    assert graph is not None
    owner = graph if isinstance(graph, ir.Graph) else graph.graph
    values = add_array(owner, f"{node.outputs[0].name}.{name}", np.array(attribute.as_ints(), dtype=np.int64))
    node.resize_inputs(2)
    node.replace_input_with(1, values)


def _split(node: ir.Node) -> None:
    _ints_to_input(node, "split")
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


_ADAPTERS: dict[str, Callable[[ir.Node], None]] = {
    **dict.fromkeys((REDUCTIONS | {"Squeeze", "Unsqueeze"}), lambda node: _ints_to_input(node, "axes")),
    "Split": _split,
}
