"""Computing at compile time what does not depend on the input.

Small constants are evaluated with ONNX's reference operators. A weight is never evaluated here: where a
node only re-arranges or scales a weight (Transpose, 1 + w, Cast), the result becomes a lazy weight that is
computed when the artifact is written.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import (
    READABLE_ELEMENTS,
    add_array,
    add_initializer,
    constant,
    extents,
    readable,
)
from onnxforge.passes.lazy import lazy_tensor
from onnxforge.passes.matching import is_op
from onnxforge.passes.operator_families import NEVER_FOLDED
from onnxforge.passes.shapes import Facts
from onnxforge.passes.stored_blocks import turned

_ARITHMETIC: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
}


def known_sizes(node: ir.Node, facts: Facts) -> np.ndarray | None:
    """The output of a node whose elements the shape analysis knows as numbers."""
    output = node.outputs[0]
    elements, shape = facts.elements.get(output), facts.shape(output)
    if elements is None or shape is None or output.dtype is None or len(node.outputs) != 1:
        return None
    numbers = [dim.value for dim in elements]
    if any(number is None for number in numbers):
        return None
    array = np.array(numbers, dtype=output.dtype.numpy())
    return array.reshape([dim.value or 0 for dim in shape])


def evaluate(node: ir.Node, opsets: Mapping[str, int]) -> np.ndarray | None:
    """The output of a one-output node all of whose inputs are readable constants; None where it is not."""
    if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1 or node.op_type in NEVER_FOLDED:
        return None
    if any(
        item.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for item in node.attributes.values()
    ):
        return None
    inputs = [readable(value) if value is not None else None for value in node.inputs]
    if any(array is None and value is not None for array, value in zip(inputs, node.inputs, strict=True)):
        return None
    if is_op(node, "ConstantOfShape", "Expand", "Range", "Tile") and _is_large(node, inputs):
        return None
    try:
        result = run_node(node, inputs, opsets)[0]
    except Exception:
        # The reference operators do not cover every dtype and attribute; the node then simply stays.
        return None
    return result if result.size <= READABLE_ELEMENTS else None


def run_node(
    node: ir.Node, inputs: Sequence[np.ndarray | None], opsets: Mapping[str, int]
) -> tuple[np.ndarray, ...]:
    """The outputs of one node of the main domain under ONNX's reference operators.

    Raises whatever the reference operator raises for arguments that it does not support.
    """
    from onnx.reference.ops import load_op

    run = load_op("", node.op_type, opsets.get("", 1)).eval
    attributes = {name: _attribute(item) for name, item in node.attributes.items()}
    if is_op(node, "Split"):
        attributes["n_outputs"] = len(node.outputs)
    result = run(*inputs, **attributes)
    return tuple(np.asarray(item) for item in (result if isinstance(result, tuple | list) else (result,)))


def _is_large(node: ir.Node, inputs: list[np.ndarray | None]) -> bool:
    if node.op_type == "ConstantOfShape":
        shape = inputs[0]
        return shape is None or int(np.prod(shape)) > READABLE_ELEMENTS
    if node.op_type == "Range":
        start, limit, delta = (float(item.reshape(())) for item in inputs if item is not None)
        return abs((limit - start) / delta) > READABLE_ELEMENTS
    repeats = inputs[1]
    return repeats is None or int(np.prod(np.maximum(repeats, 1))) > READABLE_ELEMENTS


def _attribute(attribute: ir.Attr) -> object:
    if attribute.type == ir.AttributeType.TENSOR:
        return ir.serde.serialize_tensor(attribute.as_tensor())
    return attribute.value


def fold_weight(node: ir.Node) -> ir.LazyTensor | None:
    """The lazy weight that ``node`` computes from a weight that nobody else reads, or None.

    A weight that has other readers stays as it is: folding would store it twice.
    """
    inputs = [constant(value) for value in node.inputs]
    tensors = [tensor for tensor in inputs if tensor is not None]
    if len(tensors) != len(node.inputs) or node.domain not in ("", "ai.onnx"):
        return None
    for value, tensor in zip(node.inputs, tensors, strict=True):
        shared = value is not None and any(use.node is not node for use in value.uses())
        if shared and (tensor.size > READABLE_ELEMENTS or is_op(node, "Transpose")):
            return None
    name, first = node.outputs[0].name, tensors[0]
    if is_op(node, "Transpose"):
        order = node.attributes.get("perm")
        perm = tuple(order.as_ints()) if order is not None else tuple(range(len(first.shape)))[::-1]
        shape = tuple(extents(first)[axis] for axis in perm)
        weight = lazy_tensor(lambda: first.numpy().transpose(perm), dtype=first.dtype, shape=shape, name=name)
        if perm == (1, 0):
            turned(first, weight)
        return weight
    if is_op(node, "Cast"):
        dtype = ir.DataType(node.attributes["to"].as_int())
        shape = extents(first)
        return lazy_tensor(lambda: first.numpy().astype(dtype.numpy()), dtype=dtype, shape=shape, name=name)
    if is_op(node, *_ARITHMETIC):
        combine, second = _ARITHMETIC[node.op_type], tensors[1]
        wide = np.broadcast_shapes(extents(first), extents(second))
        return lazy_tensor(
            lambda: combine(first.numpy(), second.numpy()), dtype=first.dtype, shape=wide, name=name
        )
    return None


def fold(node: ir.Node, facts: Facts, opsets: Mapping[str, int]) -> ir.Value | None:
    """The initializer that replaces ``node``; None where the node has to stay."""
    graph, output = node.graph, node.outputs[0]
    if output.is_graph_output() or not isinstance(graph, ir.Graph):
        return None
    array = known_sizes(node, facts)
    if array is None and not _turns_matrix(node):
        array = evaluate(node, opsets)
    if array is not None:
        return add_array(graph, f"{output.name}", array)
    weight = fold_weight(node)
    if weight is None:
        return None
    source = max((value for value in node.inputs if value is not None), key=_elements)
    return rename_over(source, add_initializer(graph, f"{output.name}", weight))


def _turns_matrix(node: ir.Node) -> bool:
    """A transposed matrix is a weight however small it is: models of every size take the same path."""
    tensor = constant(node.inputs[0]) if is_op(node, "Transpose") else None
    return tensor is not None and len(tensor.shape) == 2


def _elements(value: ir.Value) -> int:
    tensor = constant(value)
    return tensor.size if tensor is not None else 0


def rename_over(old: ir.Value, new: ir.Value) -> ir.Value:
    """Give ``new`` the name of the weight it is computed from, where ``new`` replaces its last reader."""
    name = old.name
    if name is not None and len(tuple(old.uses())) == 1 and not old.is_graph_output():
        old.name = f"{name}.source"
        new.name = name
    return new
