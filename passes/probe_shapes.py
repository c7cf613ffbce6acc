"""Concrete output shapes of one node: short rules for the common operators, ONNX's inference for the rest."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

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
    if node.op_type == "Transpose" and shapes[0] is not None:
        perm = node.attributes.get_ints("perm") or tuple(reversed(range(len(shapes[0]))))
        return [tuple(shapes[0][axis] for axis in perm)]
    if node.op_type == "GroupQueryAttention" and shapes[0] is not None:
        return [_grouped_query_shape(node, shapes[0], packed=shapes[1] is None)]
    proto = ir.to_proto(node)
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
