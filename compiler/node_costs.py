"""What one run of a node has to compute and to read: from the graph as ONNX Runtime loads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxforge.compiler.left_quantizers import integer_products, multiplications

_CACHED = "GroupQueryAttention"
ATTENTIONS = ("MultiHeadAttention", "Attention")
"""Operators whose width is seen when they run: in graphs as loaded their inputs have no shapes."""
_WITH_HEADS = 4
_WEIGHTS_IN_8_BITS = 4
"""``accuracy_level`` of MatMulNBits at which activations become int8."""


@dataclass(frozen=True)
class NodeCost:
    """The part of a node's work that a bound is known for."""

    operator: str
    """With what tells kernels of one operator apart: ``MatMulNBits (8 bits)``."""
    macs_per_row: int = 0
    """Multiply-adds with weights, for each row (token) of input."""
    weight_bytes: int = 0
    """Read in every run, whatever its rows."""
    integer: bool = False
    """The multiply-adds are of int8."""
    attention_width: int = 0
    """Heads times head size: multiply-adds for each pair of a query and a key are twice that."""
    cache_bytes: int = 0
    """Keys and values of one past position."""

    causal: bool = True
    """A query needs no key behind it, whatever the kernel computes."""

    def macs(self, rows: int, tokens: int, past: int, sequences: int = 1) -> int:
        """Multiply-adds of a run whose output has `rows` rows, over `tokens` of each of `sequences` behind
        `past` others."""
        pairs = tokens * (past + tokens) - self.causal * tokens * (tokens - 1) // 2
        return rows * self.macs_per_row + sequences * 2 * self.attention_width * pairs

    def read_bytes(self, tokens: int, past: int) -> int:
        """Weights and cache that such a run reads, each once."""
        return self.weight_bytes + self.cache_bytes * (past + tokens)


def node_costs(loaded: ir.Model) -> Mapping[str, NodeCost]:
    """Costs by the node's name, of every node of a graph whose weights' types and shapes are there."""
    return {node.name: _cost(node) for node in loaded.graph.all_nodes() if node.name}


def _cost(node: ir.Node) -> NodeCost:
    if node.op_type == _CACHED:
        return _cached_attention(node)
    if node.op_type in ATTENTIONS:
        return NodeCost(node.op_type, causal=_is_causal(node))
    macs = multiplications(node)
    if not macs:
        return NodeCost(node.op_type)
    bits = node.attributes.get("bits")
    level = node.attributes.get("accuracy_level")
    blocks = node.op_type == "MatMulNBits"
    return NodeCost(
        f"MatMulNBits ({bits.as_int() if bits is not None else 4} bits)" if blocks else node.op_type,
        macs_per_row=macs,
        weight_bytes=sum(_nbytes(value) for value in node.inputs),
        integer=bool(integer_products([node]))
        and (not blocks or (level is not None and level.as_int() == _WEIGHTS_IN_8_BITS)),
    )


def _cached_attention(node: ir.Node) -> NodeCost:
    past = node.inputs[3]
    heads, groups = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    width = past.shape[3] if past is not None and past.shape is not None else 0
    size = past.dtype.itemsize if past is not None and past.dtype is not None else 4
    dim = width if isinstance(width, int) else 0
    return NodeCost(node.op_type, attention_width=heads * dim, cache_bytes=int(2 * groups * dim * size))


def query_width(shape: Sequence[int]) -> int:
    """Heads times head size, of a query [batch, tokens, width] or [batch, heads, tokens, head size]."""
    return shape[1] * shape[3] if len(shape) == _WITH_HEADS else shape[-1]


def _is_causal(node: ir.Node) -> bool:
    said = node.attributes.get("unidirectional") or node.attributes.get("is_causal")
    return said is not None and said.as_int() == 1


def _nbytes(value: ir.Value | None) -> int:
    return value.const_value.nbytes if value is not None and value.const_value is not None else 0
