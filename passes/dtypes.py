"""Element types of values that an exporter left untyped, from the operators' own schemas."""

from collections.abc import Mapping
from functools import cache

import onnx
import onnx_ir as ir

from onnxforge.passes.matching import is_op


def infer_dtypes(node: ir.Node, opsets: Mapping[str, int]) -> bool:
    """Set the dtypes that ``node`` leaves open, where its schema decides them; True if one was set."""
    changed = False
    for index, output in enumerate(node.outputs):
        if output.dtype is None:
            dtype = _output_dtype(node, index, opsets)
            if dtype is not None:
                output.dtype, changed = dtype, True
    return changed


def _output_dtype(node: ir.Node, index: int, opsets: Mapping[str, int]) -> ir.DataType | None:
    if is_op(node, "Cast"):
        return ir.DataType(node.attributes["to"].as_int())
    if is_op(node, "ConstantOfShape"):
        filler = node.attributes.get("value")
        return filler.as_tensor().dtype if filler is not None else ir.DataType.FLOAT
    if node.domain not in ("", "ai.onnx"):
        return node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
    formals = _formals(node.op_type, opsets.get(node.domain, opsets.get("", 1)))
    if formals is None:
        return None
    inputs, outputs = formals
    wanted = outputs[min(index, len(outputs) - 1)]
    if wanted.startswith("tensor("):
        return _TENSOR_TYPES.get(wanted)
    for position, value in enumerate(node.inputs):
        if value is not None and inputs[min(position, len(inputs) - 1)] == wanted:
            return value.dtype
    return None


@cache
def _formals(op_type: str, version: int) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The type strings of the inputs and outputs in the schema; None for unknown operators."""
    if not onnx.defs.has(op_type):
        return None
    try:
        schema = onnx.defs.get_schema(op_type, version)
    except onnx.defs.SchemaError:
        return None
    single = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    single = {name: allowed for name, allowed in single.items() if len(allowed) == 1}
    return (
        tuple(item.type_str for item in schema.inputs),
        tuple(single.get(item.type_str, [item.type_str])[0] for item in schema.outputs),
    )


_TENSOR_TYPES = {
    f"tensor({name})": dtype
    for name, dtype in {
        "int64": ir.DataType.INT64,
        "int32": ir.DataType.INT32,
        "bool": ir.DataType.BOOL,
        "float": ir.DataType.FLOAT,
        "uint8": ir.DataType.UINT8,
        "int8": ir.DataType.INT8,
    }.items()
}
