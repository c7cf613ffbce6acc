"""Concrete output shapes of one node: short rules for the common operators, ONNX's inference for the rest."""

from collections.abc import Callable
from math import prod
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx_ir.serde import serialize_node

_ELEMENTWISE = (
    (
        "Identity",
        "Cast",
        "CastLike",
        "Dropout",
        "Clip",
        "Not",
        "IsNaN",
        "IsInf",
        "Floor",
        "Ceil",
        "Neg",
        "Abs",
    ),
    ("Sqrt", "Exp", "Log", "Reciprocal", "Cos", "Sin", "Erf", "Tanh", "Sigmoid", "Relu", "LeakyRelu", "Elu"),
    ("Softplus", "Swish", "HardSwish", "Gelu", "FastGelu", "QuickGelu", "BiasGelu"),
)
_ROW_WISE = (
    ("Softmax", "LogSoftmax", "CumSum", "Trilu", "ScatterND", "ScatterElements", "RotaryEmbedding"),
    ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
    ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "MultiHeadAttention"),
)
AS_FIRST = frozenset(name for names in (*_ELEMENTWISE, *_ROW_WISE) for name in names)
"""Operators whose first output has the shape of their first input."""

_LOGIC = ("And", "Or", "Xor", "Where", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
BROADCAST = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", *_LOGIC))
"""Operators whose output has the broadcast shape of all inputs."""


Dims: TypeAlias = tuple[int, ...]
Data: TypeAlias = dict[int, np.ndarray]
"""By input index, the arrays that are known."""


class ShapeProblem(Exception):
    """The shape does not follow from what is known."""


def matmul_shape(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a matrix product of operands of rank 2 or more; ValueError where they do not fit."""
    if len(left) < 2 or len(right) < 2 or left[-1] != right[-2]:
        raise ValueError(f"cannot multiply {left} by {right}")
    return (*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])


def infer(
    node: ir.Node,
    shapes: list[tuple[int, ...] | None],
    data: dict[int, np.ndarray],
    opsets: dict[str, int],
) -> list[tuple[int, ...]]:
    """Output shapes of ``node`` from input shapes and the arrays of those inputs that are known.

    Raises:
        ShapeProblem: ONNX has no such operator, or the shape depends on data that is not known.
    """
    short = _SHORT.get(node.op_type) if not node.domain else None
    if short is not None and shapes[0] is not None:
        return [short(node, shapes[0], shapes, data)]
    if node.op_type == "GroupQueryAttention" and shapes[0] is not None:
        return [_grouped_query_shape(node, shapes[0], packed=shapes[1] is None)]
    proto = serialize_node(node)
    types: dict[str, onnx.TypeProto] = {}
    arrays: dict[str, onnx.TensorProto] = {}
    for index, item in enumerate(node.inputs):
        shape = shapes[index]
        if item is None or shape is None:
            continue
        dtype = item.dtype if item.dtype is not None else ir.DataType.FLOAT
        if index in data:
            arrays[item.name or ""] = numpy_helper.from_array(data[index])
            dtype = ir.DataType.from_numpy(data[index].dtype)
        types[item.name or ""] = helper.make_tensor_type_proto(int(dtype), shape)
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
        found = onnx.shape_inference.infer_node_outputs(
            schema,
            proto,
            types,
            arrays,
            opset_imports=[helper.make_opsetid(*pair) for pair in opsets.items()],
        )
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise ShapeProblem(str(error)) from error
    return [_dims(found, output) for output in node.outputs]


def _transpose(node: ir.Node, first: Dims, shapes: list[Dims | None], data: Data) -> Dims:
    perm = node.attributes.get_ints("perm") or tuple(reversed(range(len(first))))
    return tuple(first[axis] for axis in perm)


def _reshape(node: ir.Node, first: Dims, shapes: list[Dims | None], data: Data) -> Dims:
    target = [int(dim) for dim in _known(node, data, 1)]
    if not node.attributes.get_int("allowzero", 0):
        target = [first[axis] if dim == 0 else dim for axis, dim in enumerate(target)]
    rest = prod(dim for dim in target if dim != -1)
    if -1 in target and rest:
        target[target.index(-1)] = prod(first) // rest
    if -1 in target or prod(target) != prod(first):
        raise ShapeProblem(f"cannot reshape {first} to {target}")
    return tuple(target)


def _concat(node: ir.Node, first: Dims, shapes: list[Dims | None], data: Data) -> Dims:
    axis = node.attributes.get_int("axis", 0) % len(first)
    total = sum(shape[axis] for shape in shapes if shape is not None)
    return (*first[:axis], total, *first[axis + 1 :])


def _gather(node: ir.Node, first: Dims, shapes: list[Dims | None], data: Data) -> Dims:
    axis = node.attributes.get_int("axis", 0) % len(first)
    return (*first[:axis], *(shapes[1] or ()), *first[axis + 1 :])


def _unsqueeze(node: ir.Node, first: Dims, shapes: list[Dims | None], data: Data) -> Dims:
    # Before opset 13 the axes are an attribute.
    axes = node.attributes.get_ints("axes") or tuple(_known(node, data, 1).reshape(-1))
    rank = len(first) + len(axes)
    new = {int(axis) % rank for axis in axes}
    dims = iter(first)
    return tuple(1 if axis in new else next(dims) for axis in range(rank))


def _expand(node: ir.Node, first: Dims, shapes: list[Dims | None], data: Data) -> Dims:
    try:
        return np.broadcast_shapes(first, tuple(int(dim) for dim in _known(node, data, 1)))
    except ValueError as error:
        raise ShapeProblem(str(error)) from error


def _known(node: ir.Node, data: Data, index: int) -> np.ndarray:
    if index not in data:
        raise ShapeProblem(f"input {index} of {node.op_type} {node.name!r} is not known")
    return data[index]


_SHORT: dict[str, Callable[[ir.Node, Dims, list[Dims | None], Data], Dims]] = {
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def _grouped_query_shape(node: ir.Node, query: tuple[int, ...], *, packed: bool) -> tuple[int, ...]:
    heads = node.attributes.get_int("num_heads", 1)
    groups = heads + 2 * node.attributes.get_int("kv_num_heads", 1)
    return (*query[:-1], query[-1] * heads // groups) if packed else query


def _dims(found: dict[str, onnx.TypeProto], output: ir.Value) -> tuple[int, ...]:
    kind = found.get(output.name or "")
    if kind is None or not kind.tensor_type.HasField("shape"):
        raise ShapeProblem(f"the shape of {output.name!r} is not known")
    dims = kind.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        raise ShapeProblem(f"the shape of {output.name!r} depends on data")
    return tuple(dim.dim_value for dim in dims)
