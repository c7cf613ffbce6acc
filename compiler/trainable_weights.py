"""Which constants of a stretch of a graph can learn, and how they get back into it."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import constant
from onnxforge.passes.forget_measured import forget_measured
from onnxforge.passes.matching import CONTRIB, input_at, is_op
from onnxforge.passes.spilled import spilled

_NORMS = (
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)


def trainable_weights(nodes: Iterable[ir.Node]) -> tuple[ir.Value, ...]:
    """The float32 initializers that ``nodes`` read as matrices, biases, or factors of norms.

    Not those that something else reads too (a table that is both embedding and head), and no embedding,
    position table, mask or scalar.
    """
    inside = set(nodes)
    found: dict[ir.Value, None] = {}
    for node in nodes:
        for value in _weights_of(node):
            source = _behind_transpose(value)
            if _learns(source) and _only_read_by(source, inside):
                found.setdefault(source)
    return tuple(found)


def put_back(graph: ir.Graph, trained: Mapping[ir.Value, np.ndarray]) -> None:
    """Make ``trained`` the bytes of these initializers. They lie in unnamed temporary files until written.

    Moments and gradients that were measured with the weights before are forgotten.
    """
    forget_measured(graph)
    for value, array in trained.items():
        value.const_value = ir.Tensor(spilled(array.astype(np.float32, copy=False)), name=value.name)


def _indices(node: ir.Node) -> tuple[int, ...]:
    """The inputs of ``node`` that are weights where they are constant; none of a Gather."""
    if is_op(node, "MatMul"):
        return (1,)
    if is_op(node, "Gemm"):
        return (1, 2)
    if is_op(node, "Add"):
        return (0, 1)
    if is_op(node, *_NORMS) or is_op(node, *_NORMS, domain=CONTRIB):
        return tuple(range(1, len(node.inputs)))
    return (3,) if is_op(node, "MultiHeadAttention", domain=CONTRIB) else ()


def _weights_of(node: ir.Node) -> Iterator[ir.Value]:
    for index in _indices(node):
        value = input_at(node, index)
        if value is not None:
            yield value


def _behind_transpose(value: ir.Value) -> ir.Value:
    maker = value.producer()
    if maker is not None and is_op(maker, "Transpose") and maker.inputs[0] is not None:
        return maker.inputs[0]
    return value


def _learns(value: ir.Value) -> bool:
    tensor = constant(value)
    return (
        tensor is not None
        and value.producer() is None
        and tensor.dtype == ir.DataType.FLOAT
        and tensor.size > 1
        and len(tensor.shape) in (1, 2)
    )


def _only_read_by(value: ir.Value, inside: set[ir.Node]) -> bool:
    for use in value.uses():
        readers = [use.node]
        if is_op(use.node, "Transpose"):
            readers = [turned.node for turned in use.node.outputs[0].uses()]
        if not all(reader in inside and _indices(reader) for reader in readers):
            return False
    return not value.is_graph_output()
