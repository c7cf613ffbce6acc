"""What one token costs a graph: bytes that must be read and multiply-adds that must be made.

Read from the graph itself, not from a formula about the architecture, so that packing, quantization and
pruning change the numbers the way they change the machine's work. Every weight is read once per step,
except tables from which a step takes only rows: embeddings, and the rotary tables of an attention operator.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

_ROW_LOOKUPS = {
    ("Gather", 0),
    ("GatherBlockQuantized", 0),
    ("GatherBlockQuantized", 2),
    ("GroupQueryAttention", 7),
    ("GroupQueryAttention", 8),
}
_WEIGHT_INPUT = {"MatMul": (0, 1), "Gemm": (1,), "MatMulNBits": (1,), "MatMulInteger": (1,)} | {
    "DynamicQuantizeMatMul": (1,),
    "MatMulIntegerToFloat": (1,),
    "QLinearMatMul": (3,),
    "QGemm": (3,),
}
_QUANTIZATION_INPUTS = {  # scales and zero points: bytes to read, but no parameters of the model
    "MatMulNBits": (2, 3, 4),
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "GatherBlockQuantized": (2, 3),
    "DynamicQuantizeMatMul": (2, 3),
    "MatMulInteger": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "GroupQueryAttention": (7, 8, 12, 13),
}
_VIEWS = ("DequantizeLinear", "Transpose", "Cast", "Identity", "Reshape", "Unsqueeze")


@dataclass(frozen=True)
class Traffic:
    """Per-token costs of one graph."""

    parameters: int
    """Weights of the model, each counted once however it is stored; no scales, no rotary tables."""
    weight_bytes: int
    """Read for every decoded token."""
    stored_bytes: int
    """All initializers, as stored."""
    cache_bytes_per_position: int
    """Keys and values of one past position, all layers; 0 for an encoder."""
    integer_macs: int
    """Multiply-adds per token against weights stored in 8 bits or fewer."""
    float_macs: int
    """Multiply-adds per token against floating-point weights."""


def traffic_of(path: Path) -> Traffic:
    """Read the graph at ``path``; no weight is loaded."""
    model = ir.load(path)
    parameters = weights = stored = integer = floating = 0
    for value in _initializers(model):
        tensor = value.const_value
        if tensor is None:
            continue
        stored += tensor.nbytes
        uses = list(_uses(value))
        if not all((node.op_type, index) in _ROW_LOOKUPS for node, index in uses):
            weights += tensor.nbytes
        parameters += _parameters(value, tensor)
        for node, index in uses:
            if index in _WEIGHT_INPUT.get(node.op_type, ()):
                macs = _logical_size(tensor, node)
                if tensor.dtype.is_floating_point():
                    floating += macs
                else:
                    integer += macs
    cache = sum(_row_bytes(i) for i in model.graph.inputs if (i.name or "").startswith("past_key_values."))
    return Traffic(parameters, weights, stored, cache, integer, floating)


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The operators that consume ``value``, seen through dequantization and changes of layout."""
    for node, index in value.uses():
        if node.op_type in _VIEWS and index == 0:
            for output in node.outputs:
                yield from _uses(output)
        else:
            yield node, index


def _parameters(value: ir.Value, tensor: ir.TensorProtocol) -> int:
    if tensor.size < 2 or not list(value.uses()):
        return 0
    node, index = next(iter(value.uses()))
    if index in _QUANTIZATION_INPUTS.get(node.op_type, ()):
        return 0
    holds_weights = index in _WEIGHT_INPUT.get(node.op_type, ()) or (node.op_type, index) in _ROW_LOOKUPS
    dequantized = node.op_type == "DequantizeLinear" and index == 0
    if tensor.dtype.is_floating_point() or dequantized or (holds_weights and node.op_type != "Gather"):
        return _logical_size(tensor, node)
    return 0


def _logical_size(tensor: ir.TensorProtocol, node: ir.Node) -> int:
    """Elements of the weight, which a packed operand (MatMulNBits) states in its attributes."""
    if node.op_type == "MatMulNBits":
        return node.attributes["K"].as_int() * node.attributes["N"].as_int()
    return tensor.size


def _row_bytes(cache: ir.Value) -> int:
    if cache.shape is None or cache.dtype is None:
        return 0
    heads, width = cache.shape[1], cache.shape[3]
    if not isinstance(heads, int) or not isinstance(width, int):
        return 0
    return math.ceil(heads * width * cache.dtype.itemsize)
