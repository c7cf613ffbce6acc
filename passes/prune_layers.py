"""Take whole layers out of a model, with their part of the key/value cache."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.forget_measured import forget_measured
from onnxforge.passes.layer_ranks import ranked
from onnxforge.passes.layers import LayersNotFound, LayerUnit, Span, find_layers, spans_of
from onnxforge.passes.matching import is_op, redirect, remove_dead
from onnxforge.passes.removed_layers import remember_removed, removed
from onnxforge.passes.removed_units import forget_units
from onnxforge.passes.unpruned import remember_unpruned

WHAT = "removed"
_CACHE = re.compile(r"(?P<side>past_key_values|present)\.(?P<layer>\d+)\.(?P<kind>key|value)")


def how_many(count: float, layers: int) -> int:
    """What ``count`` asks for: so many layers, or below 1 that share of ``layers``, rounded."""
    return round(count * layers) if count < 1 else int(count)


@dataclass(frozen=True)
class PruneLayers(GraphPass):
    """Remove layers: their nodes and weights, their past and present; the caches behind move up.

    ::

        x0 ─ layer 0 ─ x1 ─ layer 1 ─ x2 ─ layer 2 ─ x3        past_key_values.0 .1 .2, present.0 .1 .2
        x0 ─ layer 0 ─ x1 ─────────────── layer 2 ─ x3         past_key_values.0 .1, present.0 .1

    Layers are found in the graph (:func:`onnxforge.passes.layers.find_layers`), so decoders and encoders,
    pre-norm, post-norm and parallel ones are all the same to it. What a removed layer made that others read
    stays (masks, rotation tables); a size that was read off its cache is read off another's. Whatever else
    reads a value of a removed layer is named, and nothing is changed. Nodes and values keep their names, only
    inputs and outputs are numbered anew; the layers and their numbers are kept in the model's metadata. What
    was measured of the layers' inputs before is forgotten, and so is what the removed ones had lost of
    channels and heads.

    Which layers go is said, or found by ``rank-layers`` before this pass. Run it before ``fuse-skip-norm``,
    which merges the stream with the norms, and before everything that measures or quantizes.

    Whole layers: Men et al. 2024, ShortGPT (2403.03853). Attentions or MLPs alone: He et al. 2024
    (2406.15786).
    """

    summary: ClassVar[str] = "remove whole layers, or their attentions or MLPs, and their part of the cache"

    count: int | float = 0
    """How many go, by the ranks that ``rank-layers`` left; below 1 a share of them."""
    layers: str = ""
    """Or which: their numbers in the order of the graph, joined by ``+``."""
    unit: str = "layer"
    """``layer``, ``attention`` or ``mlp``."""

    def requires(self, model: ir.Model) -> None:
        """Refuse what cannot be removed.

        Raises:
            PassRefused: options that name no layers, or all; a graph without layers that can be told apart;
                a value of a removed layer that another node reads, which is named.
        """
        if self.unit == LayerUnit.LAYER and (
            removed(model, LayerUnit.ATTENTION) or removed(model, LayerUnit.MLP)
        ):
            raise PassRefused(
                f"{self.text()}: some layers have lost their attention or MLP already; remove layers first."
            )
        self._cut(model.graph)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove them; see :mod:`onnxforge.passes.removed_layers` for what is written down."""
        cut = self._cut(model.graph)
        remember_unpruned(model)
        numbers = [number for number, _ in cut.spans]
        names = [span.end.name for _, span in cut.spans]
        _apply(model.graph, cut)
        forget_measured(model.graph)
        forget_units(model)
        originals = remember_removed(model, LayerUnit(self.unit), numbers)
        for original, name in zip(originals, names, strict=True):
            notes.match(f"{WHAT} {self.unit}", f"{original} ({name})")
        return ir.passes.PassResult(model, modified=True)

    def _cut(self, graph: ir.Graph) -> "_Cut":
        if self.unit not in tuple(LayerUnit):
            raise PassRefused(f"{self.text()}: unit is one of {', '.join(LayerUnit)}.")
        try:
            layers = find_layers(graph)
            spans = spans_of(layers, LayerUnit(self.unit))
        except LayersNotFound as problem:
            raise PassRefused(f"{self.text()}: {problem}.") from problem
        chosen = self._chosen(spans)
        cut = _planned(graph, [(number, spans[number]) for number in chosen])
        if isinstance(cut, str):
            raise PassRefused(f"{self.text()}: {cut}.")
        return cut

    def _chosen(self, spans: Sequence[Span]) -> list[int]:
        """Numbers of the spans that go, in the order of the graph."""
        most = len(spans) - 1
        if bool(self.count) == bool(self.layers) or self.count < 0 or self.count > int(self.count) > 0:
            raise PassRefused(f"{self.text()}: say how many layers go (count=4) or which (layers=21+22).")
        if self.layers:
            words = self.layers.split("+")
            if not all(word.isdecimal() and int(word) <= most for word in words) or len(set(words)) > most:
                raise PassRefused(
                    f"{self.text()}: layers are numbers from 0 to {most} joined by +, at most {most} of them."
                )
            return sorted({int(word) for word in words})
        wanted, known = how_many(self.count, len(spans)), ranked(spans, LayerUnit(self.unit))
        if not 0 < wanted <= most:
            raise PassRefused(f"{self.text()}: of {len(spans)} layers 1 to {most} can go, not {wanted}.")
        if len(known) < wanted:
            found = f"only {len(known)} of the {wanted} are" if known else "none is"
            raise PassRefused(
                f"{self.text()}: layers go by their rank, and {found} ranked. Put "
                f"rank-layers{{count={self.count},unit={self.unit}}} before it, or name them: "
                f"{self.pass_name()}{{layers=10+12}}."
            )
        return sorted(known[:wanted])


@dataclass(frozen=True)
class _Cut:
    """What is to be done, found before anything is."""

    spans: tuple[tuple[int, Span], ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    sizes: tuple[tuple[ir.Node, ir.Value], ...]
    """Shape nodes, and what they are to read instead."""


def _planned(graph: ir.Graph, spans: Sequence[tuple[int, Span]]) -> _Cut | str:
    """How to remove ``spans``, or what stands in the way."""
    gone = {node for _, span in spans for node in _made_of(span)}
    outputs = [value for value in graph.outputs if value.producer() in gone]
    ends = {span.end: span.start for _, span in spans}
    lost = [value for value in outputs if value not in ends]
    for value in lost:
        if not _CACHE.fullmatch(value.name or ""):
            return f"the model returns {value.name}, which only what is to be removed computes"
    nested = next(
        (u.node for n in gone for v in n.outputs for u in v.uses() if u.node.graph is not graph), None
    )
    if nested is not None:
        return f"{nested.name}, inside a branch or a loop, reads what is to be removed"
    dead = {(match["layer"], match["kind"]) for value in lost if (match := _cache(value))}
    inputs = [v for v in graph.inputs if (m := _cache(v)) and (m["layer"], m["kind"]) in dead]
    kept = [value for value in graph.outputs if value not in lost]
    live = _live(kept, ends)
    sizes: list[tuple[ir.Node, ir.Value]] = []
    for node in graph:
        if node not in live:
            continue
        for read in node.inputs:
            if read is None or read in ends or not (read.producer() in gone or read in inputs):
                continue
            stand_in = _of_same_shape(read, graph, inputs, spans)
            if not is_op(node, "Shape") or stand_in is None:
                return f"{node.name} stays and reads {read.name}, which is to be removed"
            sizes.append((node, stand_in))
    staying = {value for node in live - gone for value in node.inputs}
    for past in graph.inputs:
        if _cache(past) and past not in inputs and past not in staying:
            return f"{past.name} is read by nothing but what is to be removed, and its present stays"
    return _Cut(tuple(spans), tuple(inputs), tuple(lost), tuple(sizes))


def _made_of(span: Span) -> set[ir.Node]:
    """The nodes of ``span``, and those that only go on from them without leading to its end."""
    found = set(span.nodes)
    pending = [value for node in span.nodes for value in node.outputs if value is not span.end]
    while pending:
        for use in pending.pop().uses():
            if use.node not in found and not is_op(use.node, "Shape"):
                found.add(use.node)
                pending += use.node.outputs
    return found


def _live(outputs: Sequence[ir.Value], ends: Mapping[ir.Value, ir.Value]) -> set[ir.Node]:
    """The nodes that ``outputs`` hang on once every end is the start of its span."""
    found: set[ir.Node] = set()
    pending = list(outputs)
    while pending:
        value = _beginning(pending.pop(), ends)
        node = value.producer()
        if node is not None and node not in found:
            found.add(node)
            pending += [item for item in node.inputs if item is not None]
    return found


def _beginning(value: ir.Value, ends: Mapping[ir.Value, ir.Value]) -> ir.Value:
    while value in ends:
        value = ends[value]
    return value


def _of_same_shape(
    value: ir.Value,
    graph: ir.Graph,
    inputs: Collection[ir.Value],
    spans: Sequence[tuple[int, Span]],
) -> ir.Value | None:
    """Something that stays and is known to have the sizes of ``value``: another cache, or the stream."""
    staying = [item for item in graph.inputs if item not in inputs]
    stream = _beginning(spans[0][1].start, {span.end: span.start for _, span in spans})
    for other in (*staying, stream):
        if value.shape is not None and other.shape == value.shape and _is_named(value.shape):
            return other
    return None


def _is_named(shape: ir.Shape) -> bool:
    """Whether every dimension has a number or a name, so that equal ones are equal."""
    return all(isinstance(dim, int) or dim.value is not None for dim in shape)


def _apply(graph: ir.Graph, cut: _Cut) -> None:
    for node, value in cut.sizes:
        node.replace_input_with(0, value)
    gone = [node for _, span in cut.spans for node in _made_of(span)]
    for value in cut.outputs:
        graph.outputs.remove(value)
    for _, span in reversed(cut.spans):  # from the last, so that a start is not yet replaced itself
        redirect(span.end, span.start)
    remove_dead(gone)
    for value in cut.inputs:
        graph.inputs.remove(value)
    _number(graph.inputs)
    _number(graph.outputs)


def _number(values: Sequence[ir.Value]) -> None:
    """Close the gaps in the numbers of the cache."""
    caches = [(value, match) for value in values if (match := _cache(value))]
    numbers = sorted({int(match["layer"]) for _, match in caches})
    for value, match in caches:
        value.name = f"{match['side']}.{numbers.index(int(match['layer']))}.{match['kind']}"


def _cache(value: ir.Value) -> re.Match[str] | None:
    return _CACHE.fullmatch(value.name or "")
