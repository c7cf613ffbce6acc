"""Which matrices a graph multiplies by, and what it multiplies them with."""

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from onnxforge.passes.constants import constant
from onnxforge.passes.input_moments import moments_of
from onnxforge.passes.matching import is_op, producer
from onnxforge.passes.quantized_table import MatrixKey, MatrixWeight


def weight_of(node: ir.Node) -> MatrixWeight | None:
    """The constant matrix that a MatMul multiplies by, also behind the Transpose of a tied embedding."""
    value = node.inputs[1]
    tensor = constant(value)
    if value is not None and tensor is not None:
        return MatrixWeight(value, tensor, transposed=True) if len(tensor.shape) == 2 else None
    turned = producer(value, "Transpose")
    source = turned.inputs[0] if turned is not None else None
    tensor = constant(source)
    if turned is None or source is None or tensor is None or len(tensor.shape) != 2:
        return None
    perm = turned.attributes.get("perm")
    turns = perm is None or list(perm.as_ints()) == [1, 0]
    return MatrixWeight(source, tensor, transposed=False) if turns else None


def inputs_by_weight(graph: ir.Graph) -> Mapping[MatrixKey, tuple[ir.Value, ...]]:
    """The distinct values that each matrix multiplies, in graph order."""
    found: dict[MatrixKey, dict[ir.Value, None]] = {}
    for node in graph:
        if is_op(node, "MatMul") and (weight := weight_of(node)) is not None and node.inputs[0] is not None:
            found.setdefault(weight.key, {})[node.inputs[0]] = None
    return {key: tuple(values) for key, values in found.items()}


def unmeasured(nodes: Iterable[ir.Node]) -> list[str]:
    """Names of those MatMuls whose input has no moments."""
    return [node.name or node.op_type for node in nodes if moments_of(node.inputs[0]) is None]
