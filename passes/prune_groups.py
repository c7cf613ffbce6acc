"""What of a graph can be removed, and all that has to shrink with it: the dependency analysis of pruning."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import onnx_ir as ir

from onnxforge.passes.attention_axes import attention_axes, heads_of
from onnxforge.passes.constants import constant, extents
from onnxforge.passes.coupled_axes import LabelledAxis, coupled_axes, shape_facts
from onnxforge.passes.coupling_rules import Stopped
from onnxforge.passes.dims import Dim
from onnxforge.passes.matching import is_op
from onnxforge.passes.shapes import Facts

_BATCH: Final = "batch_size"
_MATRIX: Final = 2


class Unit(StrEnum):
    """What is removed at a time."""

    CHANNEL = "channel"
    """One hidden channel of an FFN, gate included."""
    QUERY_HEAD = "query head"
    """One query head: its columns of the query projection, its rows of the output projection."""
    KV_GROUP = "key-value head"
    """A key-value head with all query heads that read it, and its part of the cache."""


@dataclass(frozen=True, eq=False)
class PruneGroup:
    """Units of one kind at one place, and every axis that shrinks when some of them go."""

    unit: Unit
    name: str
    """Of the value that is multiplied at the end, or of the attention."""
    units: int
    axes: tuple[LabelledAxis, ...]
    attention: ir.Node | None = None
    heads: tuple[int, int] = (0, 0)
    """Of the attention: query heads and key-value heads."""
    classes: int = 1
    """Of so many runs of neighbouring units each must lose as many: query heads, by key-value head."""

    @property
    def value(self) -> ir.Value:
        """What the matrices behind the units multiply: [batch, tokens, K]."""
        return next(iter(self.readers())).inputs[0]  # type: ignore[return-value]

    def readers(self) -> tuple[ir.Node, ...]:
        """The MatMuls whose constant matrix loses rows, in graph order."""
        found: dict[ir.Node, None] = {}
        for axis in self.axes:
            for use in axis.value.uses():
                if axis.axis == -1 and is_op(use.node, "MatMul") and use.idx == 0:
                    found.setdefault(use.node)
        return tuple(node for node in found if constant(node.inputs[1]) is not None)

    def labels_of(self, value: ir.Value | None) -> np.ndarray:
        """int64 [K]: the unit of each entry of ``value``; empty where it is not part of the group."""
        found = next((axis.labels for axis in self.axes if axis.value is value), None)
        return found if found is not None else np.empty(0, np.int64)

    def weights(self) -> tuple[LabelledAxis, ...]:
        """The constants among the axes."""
        return tuple(axis for axis in self.axes if constant(axis.value) is not None)

    def parameters(self) -> int:
        """Elements of weights that one unit holds, on average."""
        total = 0
        for axis in self.weights():
            sizes = extents(tensor) if (tensor := constant(axis.value)) is not None else ()
            total += int(np.prod(sizes)) // sizes[axis.axis] * int((axis.labels >= 0).sum())
        return total // self.units

    def caches(self) -> bool:
        """Whether inputs and outputs of the graph shrink with it."""
        return any(axis.value.is_graph_input() and constant(axis.value) is None for axis in self.axes)


@dataclass(frozen=True, eq=False)
class Refusal:
    """A value whose axis cannot shrink."""

    value: ir.Value
    size: int
    node: ir.Node | None
    reason: str


@dataclass(frozen=True, eq=False)
class Prunable:
    """All that :func:`prune_groups` found, in graph order."""

    groups: tuple[PruneGroup, ...]
    refusals: tuple[Refusal, ...]

    def of(self, *units: Unit) -> tuple[PruneGroup, ...]:
        """The groups of these kinds."""
        return tuple(group for group in self.groups if group.unit in units)

    def first_of(self, *units: Unit) -> tuple[PruneGroup, ...]:
        """The groups of the first of these kinds that there are any of."""
        return next((groups for unit in units if (groups := self.of(unit))), ())


def prune_groups(graph: ir.Graph) -> Prunable:
    """The channels, query heads and key-value heads that ``graph`` could do without.

    Each is found by following labels from a seed (:mod:`~onnxforge.passes.coupled_axes`): for channels the
    columns of whatever a constant matrix multiplies, for heads the inputs and outputs of an attention. What
    the labels cannot pass is a refusal with the node that stopped them. Groups of query heads and of
    key-value heads of one attention overlap: it is one or the other.
    """
    facts = shape_facts(graph)
    groups: list[PruneGroup] = []
    refusals: list[Refusal] = []
    seen: set[ir.Value] = set()
    for node in graph:
        for group in _groups_at(graph, node, facts, seen):
            if isinstance(group, Refusal):
                refusals.append(group)
            else:
                groups.append(group)
                seen.update(axis.value for axis in group.axes if group.unit is Unit.CHANNEL)
    return Prunable(tuple(groups), tuple(refusals))


def _groups_at(
    graph: ir.Graph, node: ir.Node, facts: Facts, seen: set[ir.Value]
) -> Iterator[PruneGroup | Refusal]:
    if is_op(node, "MatMul") and node.inputs[0] is not None and node.inputs[0] not in seen:
        seen.add(node.inputs[0])
        found = _channels(graph, node, facts)
        if found is not None:
            yield found
        return
    for unit in (Unit.QUERY_HEAD, Unit.KV_GROUP):
        found = _heads(graph, node, unit, facts)
        if found is not None:
            yield found


def _channels(graph: ir.Graph, reader: ir.Node, facts: Facts) -> PruneGroup | Refusal | None:
    value, tensor = reader.inputs[0], constant(reader.inputs[1])
    if value is None or tensor is None or len(tensor.shape) != 2 or not _is_sequence(value, facts):
        return None
    size = extents(tensor)[0]
    try:
        axes = coupled_axes(graph, [LabelledAxis(value, -1, np.arange(size))], facts)
    except Stopped as stop:
        return Refusal(value, size, stop.node, stop.reason)
    return PruneGroup(Unit.CHANNEL, value.name or "(unnamed)", size, axes)


def _heads(graph: ir.Graph, node: ir.Node, unit: Unit, facts: Facts) -> PruneGroup | Refusal | None:
    heads, seeds = heads_of(node, facts), attention_axes(node, facts, by_group=unit is Unit.KV_GROUP)
    if seeds is None or heads is None:
        return None
    per_kv = heads[0] // heads[1]
    if unit is Unit.QUERY_HEAD and per_kv == 1 and any(seed.value.is_graph_input() for seed in _caches(node)):
        return None  # every query head has a key-value head of its own, and goes with it
    units = max(int(seed.labels.max()) for seed in seeds) + 1
    if units == 1:
        return None
    if unit is Unit.KV_GROUP and per_kv == 1 and not _caches(node):
        return None  # the same units as its query heads
    try:
        axes = coupled_axes(graph, seeds, facts, frozenset([node]))
    except Stopped as stop:
        return Refusal(node.outputs[0], units, stop.node, stop.reason)
    classes = units // per_kv if unit is Unit.QUERY_HEAD and per_kv > 1 else 1
    group = PruneGroup(unit, node.name or "(unnamed)", units, axes, node, heads, classes)
    return (
        group if group.readers() else Refusal(node.outputs[0], units, node, "no matrix multiplies its output")
    )


def _caches(node: ir.Node) -> Sequence[LabelledAxis]:
    return [
        LabelledAxis(value, -3, np.empty(0))
        for value in node.inputs
        if value is not None and value.is_graph_input() and constant(value) is None
    ]


def _is_sequence(value: ir.Value, facts: Facts) -> bool:
    """Whether ``value`` has a row for every token. A pooled sentence [batch, K] belongs to a classifier."""
    shape = facts.shape(value)
    return shape is None or len(shape) > _MATRIX or shape[0] != Dim.symbol(_BATCH)
