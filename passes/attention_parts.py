"""From one attention to the values a fused operator takes: projections, rotary tables, cache, scale.

::

    q  <- rotary <- heads of x_q                       query
    k  <- Concat(past_key, rotary <- heads of x_k)     key, and the pair past / present
    v  <- Concat(past_value, heads of x_v)             value
"""

from dataclasses import dataclass

import onnx_ir as ir

from onnxforge.passes.attention_heads import HeadSource, Layout, Operand, merged, sources
from onnxforge.passes.attention_match import Core, NotAttention, linear_part
from onnxforge.passes.matching import CONTRIB, int_attribute, producer
from onnxforge.passes.subgraph_probe import Probe


@dataclass(frozen=True)
class Rotary:
    """The arguments of a rotary embedding; equal for two values that may be rotated together."""

    positions: ir.Value
    cos: ir.Value
    sin: ir.Value
    interleaved: bool
    dim: int
    """How many of the head's numbers are rotated, from the first."""
    scale: float


@dataclass(frozen=True)
class Projection:
    """The heads of a query or key, before and after rotation."""

    rotated: HeadSource
    bare: HeadSource
    """Equal to ``rotated`` where there is no rotary embedding."""
    rotary: Rotary | None


@dataclass(frozen=True)
class Cache:
    """The graph inputs and outputs that carry one layer's keys and values."""

    past_key: ir.Value
    past_value: ir.Value
    present_key: ir.Value
    present_value: ir.Value


@dataclass(frozen=True)
class Parts:
    """An attention, taken apart."""

    core: Core
    query: Projection
    key: Projection
    value: HeadSource
    cache: Cache | None
    scale: float
    softcap: float
    merged: ir.Value | None
    """[B, S, H*D] downstream of the attention, where the graph merges the heads that way."""


def take_apart(core: Core, probes: tuple[Probe, ...], *, cached: bool) -> Parts:
    """The parts of ``core``.

    Args:
        core: the attention.
        probes: at least one; all must agree on every scale factor.
        cached: whether the graph has past inputs, in which case keys and values must come through them.

    Raises:
        NotAttention: one of the parts is not understood; the message says which.
        Unprobeable: a shape that is needed does not follow from the graph.
    """
    functions = {linear_part(core, probe) for probe in probes}
    if len(functions) != 1:
        raise NotAttention("the scale of the scores depends on a length")
    scale, softcap = functions.pop()
    query = _projection(core.query, probes, "query")
    keys, key_factor, cache_key = _cached(core.key, probes, "key")
    values, value_factor, cache_value = _cached(core.value, probes, "value")
    if value_factor != 1:
        raise NotAttention(f"the values are scaled by {value_factor}")
    if (cache_key is None) != (cache_value is None) or (cached and cache_key is None):
        raise NotAttention(
            "keys and values do not both come from Concat(past, new) that the graph also returns"
        )
    key, value = _projection(keys, probes, "key"), _projection(values, probes, "value")
    if cache_key is not None and key.rotated.factor != 1:
        raise NotAttention("the cache holds keys that are scaled")
    if value.rotary is not None or value.rotated.factor != 1:
        raise NotAttention("the values are rotated or scaled")
    factor = query.rotated.factor * key_factor * (key.rotated.factor if cache_key is None else 1)
    cache = None
    if cache_key is not None and cache_value is not None:
        cache = Cache(cache_key[0], cache_value[0], cache_key[1], cache_value[1])
    return Parts(
        core,
        query,
        key,
        value.rotated,
        cache,
        float(f"{scale * factor:.7g}"),
        softcap,
        merged(probes[0], core.output, core.query.heads),
    )


def _projection(operand: Operand, probes: tuple[Probe, ...], what: str) -> Projection:
    rotated = next(sources(probes, operand), None)
    if rotated is None:
        raise NotAttention(f"the heads of the {what} are not a plain arrangement of any value above it")
    node = producer(rotated.value, "RotaryEmbedding", domain=CONTRIB)
    if node is None or rotated.layout is not Layout.HEADS:
        return Projection(rotated, rotated, None)
    rows, positions, cos, sin = node.inputs[:4]
    assert rows is not None
    assert positions is not None
    assert cos is not None
    assert sin is not None
    bare = next(sources(probes, Operand(rows, rotated.heads)), None)
    if bare is None or bare.factor != 1 or bare.heads != rotated.heads:
        return Projection(rotated, rotated, None)
    dim = int_attribute(node, "rotary_embedding_dim", 0) or rotated.head_size
    interleaved = bool(int_attribute(node, "interleaved", 0))
    scale = node.attributes.get_float("scale", 1.0)
    return Projection(rotated, bare, Rotary(positions, cos, sin, interleaved, dim, scale))


def _cached(
    operand: Operand, probes: tuple[Probe, ...], what: str
) -> tuple[Operand, float, tuple[ir.Value, ir.Value] | None]:
    """The newly computed part of ``operand``, the factor above the cache, and the pair past / present."""
    for source in sources(probes, operand):
        node = producer(source.value, "Concat")
        if node is None or len(node.inputs) != 2 or source.layout is not Layout.HEADS:
            continue
        past, new = _graph_input(node.inputs[0]), node.inputs[1]
        present = _graph_output(source.value)
        if past is None or new is None or int_attribute(node, "axis", 0) not in (2, -2):
            continue
        if present is None:
            raise NotAttention(f"the graph does not return Concat(past, new) of the {what}")
        return Operand(new, source.heads), source.factor, (past, present)
    return operand, 1.0, None


def _graph_input(value: ir.Value | None) -> ir.Value | None:
    """The graph input that ``value`` is, seen through nodes that copy."""
    while value is not None and not value.is_graph_input():
        node = value.producer()
        copies = node is not None and (
            node.op_type == "Identity" or (node.op_type == "Concat" and len(node.inputs) == 1)
        )
        value = node.inputs[0] if node is not None and copies else None
    return value


def _graph_output(value: ir.Value) -> ir.Value | None:
    """``value``, or a copy of it, that the graph returns."""
    if value.is_graph_output():
        return value
    copies = (use.node.outputs[0] for use in value.uses() if use.node.op_type == "Identity")
    return next((copy for copy in copies if copy.is_graph_output()), None)
