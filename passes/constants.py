"""Reading constants out of a graph without ever touching a weight.

A constant is an initializer that is not also a graph input (a caller may override those), or the output of
a ``Constant`` node. Small ones are graph structure (axes, epsilons, shapes) and may be read. Anything
large, or lazy, is a weight: its bytes move once, when the artifact is written.
"""

import numpy as np
import onnx_ir as ir

READABLE_ELEMENTS = 4096
"""Constants up to this many elements count as graph structure; rotary frequencies are the largest of them."""


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant tensor behind ``value`` (initializer or ``Constant`` node), or None. Reads no bytes."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def extents(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a constant, as plain numbers (a tensor that exists has no symbolic dimension)."""
    return tuple(dim for dim in tensor.shape if isinstance(dim, int))


def readable(value: ir.Value | None, limit: int = READABLE_ELEMENTS) -> np.ndarray | None:
    """The array behind a small constant that is stored as it is; None for weights and for non-constants."""
    tensor = constant(value)
    if tensor is None or isinstance(tensor, ir.LazyTensor) or tensor.size > limit:
        return None
    if tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element (any rank), or None."""
    array = readable(value, 1)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """The integers in a small int64/int32 constant of rank 0 or 1, or None."""
    array = readable(value, 64)
    if array is None or array.ndim > 1 or array.dtype.kind not in "iu":
        return None
    return tuple(int(item) for item in array.reshape(-1))


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer whose name starts with ``name`` and is not taken; shape and dtype are set."""
    value = ir.Value(
        name=free_name(graph, name),
        shape=ir.Shape(extents(tensor)),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    tensor.name = value.name
    graph.register_initializer(value)
    return value


def add_array(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """:func:`add_initializer` of an array held in memory."""
    return add_initializer(graph, name, ir.tensor(array))


def free_name(graph: ir.Graph, name: str) -> str:
    """``name``, or ``name_1``, ``name_2`` ... whichever is the first that no initializer holds."""
    if name not in graph.initializers:
        return name
    index = 1
    while f"{name}_{index}" in graph.initializers:
        index += 1
    return f"{name}_{index}"
