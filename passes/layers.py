"""The layers of a transformer: what lies between two places that everything the answer takes from the text
passes through."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import onnx_ir as ir

from onnxforge.passes.matching import is_op
from onnxforge.passes.residual_branches import text_values

ATTENTION = frozenset({"GroupQueryAttention", "MultiHeadAttention", "Attention"})


class LayerUnit(StrEnum):
    """What of a layer is meant."""

    LAYER = "layer"
    ATTENTION = "attention"
    MLP = "mlp"


class LayersNotFound(Exception):
    """The graph does not fall into layers: which node stands in the way."""


@dataclass(frozen=True)
class Span:
    """A stretch of the stream, ``end = f(start)``, both of one shape. Without it the stream is ``start``."""

    start: ir.Value
    end: ir.Value
    nodes: tuple[ir.Node, ...]
    """Those that take something from ``start`` on its way to ``end``, in the order of the graph. What follows
    from weights, masks, positions or sizes alone is not here."""


@dataclass(frozen=True)
class Layer:
    """An attention and what follows it, up to the next attention."""

    parts: tuple[Span, ...]
    """The attention first, then the MLP, each with its norms; one part where they are computed side by
    side."""

    @property
    def whole(self) -> Span:
        """All parts as one."""
        nodes = tuple(node for part in self.parts for node in part.nodes)
        return Span(self.parts[0].start, self.parts[-1].end, nodes)


def find_layers(graph: ir.Graph) -> tuple[Layer, ...]:
    """The layers of ``graph``, in order.

    ::

        pre-norm     x ───┬─ norm ─ attention ─ Add ─── y ───┬─ norm ─ MLP ─ Add ─── x'   a layer: x to x'
                          └───────────────────┘              └─────────────┘
        post-norm    x ───┬─ attention ─ Add ─ norm ─── y ───┬─ MLP ─ Add ─ norm ─── x'
                          └────────────┘                     └──────┘
        parallel     x ───┬─ norm ─┬─ attention ─┬─ Add ─── x'
                          │        └─ MLP ───────┤
                          └──────────────────────┘

    ``x``, ``y`` and ``x'`` are *gates*: the answer takes from the text only what comes through each of them
    (the dominators of the graph's first output). So no name is asked for, nor what norm, attention or MLP are
    made of; and layers that share keys and values, or are joined by long skips, have no gate between them.

    Raises:
        LayersNotFound: no attention is one operator; several have no gate between them; the end of the last
            layer cannot be told; a layer changes the shape of its stream.
    """
    segments = _segments(graph)
    _nothing_nested(graph)
    starts = [i for i, segment in enumerate(segments) if _attentions(segment)]
    if not starts:
        raise LayersNotFound(_without_attention(graph))
    for i in starts:
        _one_attention(segments[i])
    ends = [*starts[1:], _end_of_last(segments, starts)]
    layers = [Layer(_parts(segments[i:j])) for i, j in zip(starts, ends, strict=True)]
    for layer in layers:
        _one_shape(layer.whole, LayerUnit.LAYER)
    return tuple(layers)


def spans_of(layers: Sequence[Layer], unit: LayerUnit) -> tuple[Span, ...]:
    """All layers, or all attentions, or all MLPs, in order.

    Raises:
        LayersNotFound: attention and MLP cannot be told apart, or one of them changes the stream's shape.
    """
    if unit is LayerUnit.LAYER:
        return tuple(layer.whole for layer in layers)
    if all(len(layer.parts) == 1 for layer in layers):
        raise LayersNotFound(
            f"layer 0, which ends in {_node(layers[0].whole.end)}, is not an attention and an MLP one after "
            "the other; take unit=layer"
        )
    of_mlps = unit is LayerUnit.MLP
    spans = tuple(part for layer in layers for part in (layer.parts[1:] if of_mlps else layer.parts[:1]))
    for span in spans:
        _one_shape(span, unit)
    return spans


def _segments(graph: ir.Graph) -> list[Span]:
    """Everything between two gates that follow each other."""
    order = tuple(graph)
    position = {node: place for place, node in enumerate(order)}
    text = text_values(graph)
    used = _used(graph.outputs[0], text)
    last = {value: max((position[n] for n in used[value]), default=len(order)) for value in used}
    gates: list[ir.Value] = []
    reach = max((place for value, place in last.items() if value.producer() is None), default=-1)
    segments: list[Span] = []
    between: list[ir.Node] = []
    for place, node in enumerate(order):
        made = [value for value in node.outputs if value in used]
        if not made:
            continue
        between.append(node)
        if reach <= place and len(made) == 1:
            if gates:
                segments.append(Span(gates[-1], made[0], tuple(between)))
            gates.append(made[0])
            between = []
        reach = max(reach, *(last[value] for value in made))
    return segments


def _used(answer: ir.Value, text: set[ir.Value]) -> dict[ir.Value, list[ir.Node]]:
    """The values of the text that ``answer`` hangs on, and which nodes on the way read each."""
    found: dict[ir.Value, list[ir.Node]] = {answer: []}
    pending, seen = [answer], set()
    while pending:
        node = pending.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        for value in dict.fromkeys(node.inputs):
            if value is not None and value in text:
                if value not in found:
                    found[value] = []
                    pending.append(value)
                found[value].append(node)
    return found


def _nothing_nested(graph: ir.Graph) -> None:
    """Refuse text that is read inside a branch or a loop, where it is not followed."""
    for value in text_values(graph):
        for use in value.uses():
            if use.node.graph is not graph:
                raise LayersNotFound(f"{use.node.name}, inside a branch or a loop, reads {value.name}")


def _attentions(segment: Span) -> list[ir.Node]:
    return [node for node in segment.nodes if node.op_type in ATTENTION]


def _one_attention(segment: Span) -> None:
    first, *more = _attentions(segment)
    if not more:
        return
    fused = next((node for node in segment.nodes if node.op_type.startswith("Skip")), None)
    because = "they share keys and values, or the stream is handed on beside them"
    if fused is not None:
        because = f"{fused.name} is stream and norm in one ({fused.op_type}); prune before fuse-skip-norm"
    raise LayersNotFound(
        f"{first.name} and {more[0].name} belong to no two layers: from {_node(segment.start)} to "
        f"{_node(segment.end)} no one value holds all that the answer takes from the text: {because}"
    )


def _end_of_last(segments: Sequence[Span], starts: Sequence[int]) -> int:
    """Where the last layer ends: as an earlier one does, or early where nothing is added to the stream later.

    Behind it are a norm and a head.
    """
    forms = [tuple(sorted(node.op_type for node in segment.nodes)) for segment in segments]
    behind = starts[-1] + 1
    tail = forms[behind:]
    others = {tuple(forms[i + 1 : j]) for i, j in pairwise(starts)}
    length, other = max(((_common(tail, other), other) for other in others), default=(0, ()))
    end = behind + length
    if length < len(other) and any(_adds(segment) for segment in segments[end:]):
        attention = _attentions(segments[starts[-1]])[0]
        raise LayersNotFound(
            f"what follows the last attention, {attention.name}, is like no earlier layer, so where the "
            "layer ends cannot be told"
        )
    return end


def _common(one: Sequence[tuple[str, ...]], other: Sequence[tuple[str, ...]]) -> int:
    """How many items both begin with."""
    return next(
        (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )


def _adds(segment: Span) -> bool:
    """Whether it ends by adding something to the stream."""
    return is_op(segment.end.producer(), "Add") and segment.start in segment.nodes[-1].inputs


def _parts(segments: Sequence[Span]) -> tuple[Span, ...]:
    """A part begins where the stream is read twice: by a branch, and to be added to it."""
    parts: list[list[Span]] = []
    for segment in segments:
        inside = set(segment.nodes)
        branches = len({use.node for use in segment.start.uses() if use.node in inside}) > 1
        if branches or not parts:
            parts.append([])
        parts[-1].append(segment)
    return tuple(
        Span(part[0].start, part[-1].end, tuple(node for segment in part for node in segment.nodes))
        for part in parts
    )


def _one_shape(span: Span, unit: LayerUnit) -> None:
    start, end = span.start, span.end
    same = start.dtype == end.dtype and (
        start.shape is None or end.shape is None or _dims(start) == _dims(end)
    )
    if not same:
        raise LayersNotFound(
            f"the {unit} that ends in {_node(end)} makes {end.dtype} {end.shape} of {start.dtype} "
            f"{start.shape}; without it the stream would not fit"
        )


def _dims(value: ir.Value) -> list[int | None]:
    assert value.shape is not None
    return [dim if isinstance(dim, int) else None for dim in value.shape]


def _without_attention(graph: ir.Graph) -> str:
    found = next((node for node in graph if node.op_type == "Softmax"), None)
    hint = f"; {found.name} may be part of one that fuse-attention did not recognise" if found else ""
    return f"no attention was found that is one operator and that the first output hangs on{hint}"


def _node(value: ir.Value) -> str:
    node = value.producer()
    return (node.name if node is not None else value.name) or "(unnamed)"
