"""``torch.split`` as the dynamo exporter writes it, in one standard node.

::

    SplitToSequence(x, sizes) -> SequenceAt(0), SequenceAt(1) ...   ->   Split(x, sizes)
"""

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import add_array, integers, readable
from onnxforge.passes.matching import (
    input_at,
    insert_after,
    int_attribute,
    is_op,
    redirect,
    remove_dead,
    static_dim,
)


def split_sequences(graph: ir.Graph) -> bool:
    """Replace every sequence that is taken apart at constant places; True when one was."""
    changed = False
    for node in tuple(graph):
        if is_op(node, "SplitToSequence"):
            changed |= _split(node, graph)
    return changed


def _split(node: ir.Node, graph: ir.Graph) -> bool:
    data, output = node.inputs[0], node.outputs[0]
    axis = int_attribute(node, "axis", 0)
    sizes = _sizes(node, static_dim(data, axis))
    uses = [use.node for use in output.uses()]
    if sizes is None or output.is_graph_output() or not all(is_op(use, "SequenceAt") for use in uses):
        return False
    places = [integers(use.inputs[1]) for use in uses]
    if any(place is None or not -len(sizes) <= place[0] < len(sizes) for place in places):
        return False
    kind = data.type if data is not None else None
    parts = [ir.Value(name=f"{output.name}_{index}", type=kind) for index in range(len(sizes))]
    given = add_array(graph, f"{output.name}.sizes", np.array(sizes, dtype=np.int64))
    attributes = [ir.AttrInt64("axis", axis)]
    new = ir.Node("", "Split", (data, given), attributes, outputs=parts, name=f"{node.name}_split")
    insert_after(node, new)
    for use, place in zip(uses, places, strict=True):
        assert place is not None
        redirect(use.outputs[0], parts[place[0]])
    remove_dead(uses)
    return True


def _sizes(node: ir.Node, extent: int | None) -> tuple[int, ...] | None:
    """Sizes of the parts: given one by one, or all alike but the last."""
    given = input_at(node, 1)
    sizes = integers(given)
    array = readable(given, 64)
    if sizes is None or array is None:
        return None
    if array.ndim == 1:
        return sizes
    if extent is None or sizes[0] <= 0:
        return None
    whole, rest = divmod(extent, sizes[0])
    return (sizes[0],) * whole + ((rest,) if rest else ())
