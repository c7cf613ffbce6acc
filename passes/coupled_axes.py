"""Which axes of a graph can only shrink together, found by following one axis through the operators.

Every entry of an axis gets a label: the unit that it belongs to, or -1 for an entry that belongs to none and
always stays. From one labelled value the labels spread through the nodes that make and read it, both ways,
until they end at the other axis of a constant matrix::

    x [B, S, K] @ W_up [K, F] -> h [B, S, F] -> Gelu -> h [B, S, F] @ W_down [F, N]
                          ^labels        ^labels              ^labels       ^labels

No name of a module is asked for. What may not shrink (a norm over the axis, an output of the graph, an
operator that has no rule) stops the spread, and says which node it was.

Source: the dependency graph of Fang et al. 2023, DepGraph (2301.12900), on values instead of layers.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import constant, extents
from onnxforge.passes.coupling_rules import Coupling, Label, Stopped, couplings
from onnxforge.passes.shapes import Facts, infer_shapes


@dataclass(frozen=True, eq=False)
class LabelledAxis:
    """An axis of a weight, an activation or a cache, and the unit of each of its entries."""

    value: ir.Value
    axis: int
    """Counted from the end: -1 is the last."""
    labels: np.ndarray
    """int64 [size]; -1 where the entry belongs to no unit."""


def shape_facts(graph: ir.Graph) -> Facts:
    """The shapes of everything in ``graph``; older exports record none."""
    facts = Facts()
    for node in graph:
        infer_shapes(node, facts)
    return facts


def coupled_axes(
    graph: ir.Graph, seeds: Iterable[LabelledAxis], facts: Facts, mixers: frozenset[ir.Node] = frozenset()
) -> tuple[LabelledAxis, ...]:
    """``seeds``, and every axis that must shrink with them.

    ``mixers`` are attentions whose inputs and outputs are all among the seeds: labels pass none of them.

    Raises:
        Stopped: the node that the labels cannot pass, and why.
    """
    spread = _Spread(graph, facts, mixers)
    for seed in seeds:
        spread.label(None, Coupling(seed.value, seed.axis, seed.labels))
    spread.run()
    return tuple(LabelledAxis(value, label.axis, label.labels) for value, label in spread.found.items())


class _Spread:
    """The labels found so far, and the nodes that are still to be looked at."""

    def __init__(self, graph: ir.Graph, facts: Facts, mixers: frozenset[ir.Node]) -> None:
        self.found: dict[ir.Value, Label] = {}
        self._graph, self._facts, self._mixers = graph, facts, mixers
        self._waiting: deque[ir.Node] = deque()
        self._partial: dict[ir.Node, None] = {}

    def run(self) -> None:
        """Until nothing new is found. Nodes that take their axis in pieces come last: see :meth:`_visit`."""
        while self._waiting or self._partial:
            if self._waiting:
                self._visit(self._waiting.popleft(), complete=False)
            else:
                node = next(iter(self._partial))
                del self._partial[node]
                self._visit(node, complete=True)

    def label(self, node: ir.Node | None, new: Coupling) -> None:
        """Take over what ``node`` implies of a value."""
        value, size = new.value, self._size(new.value, new.axis)
        if size is not None and size != len(new.labels):
            raise Stopped(node, f"axis {new.axis} of {value.name!r} has {size} entries for {len(new.labels)}")
        known = self.found.get(value)
        if known is not None:
            if known.axis != new.axis or not np.array_equal(known.labels, new.labels):
                raise Stopped(node, f"it ties entries of {value.name!r} that belong to different units")
            return
        if (new.labels < 0).all():
            return
        self._must_be_free(node, value)
        self.found[value] = Label(new.axis, new.labels)
        made_by = value.producer()
        self._waiting.extend(use.node for use in value.uses())
        if made_by is not None:
            self._waiting.append(made_by)

    def _must_be_free(self, node: ir.Node | None, value: ir.Value) -> None:
        cached = any(value in mixer.inputs or value in mixer.outputs for mixer in self._mixers)
        if value.is_graph_output() and not cached:
            raise Stopped(node or value.producer(), f"{value.name!r} is an output of the graph")
        if value.is_graph_input() and not cached:
            raise Stopped(node, f"{value.name!r} is an input of the graph")
        inside = [use.node for use in value.uses() if use.node.graph is not self._graph]
        if inside:
            raise Stopped(inside[0], f"it reads {value.name!r} from within another graph")

    def _visit(self, node: ir.Node, complete: bool) -> None:
        """Spread through ``node``; where pieces of an axis are not known yet, wait until all else is done."""
        if node in self._mixers:
            return
        known: Mapping[ir.Value, Label] = self.found
        implied = couplings(node, known, self._facts, complete=complete)
        if implied is None:
            self._partial.setdefault(node)
            return
        for new in implied:
            self.label(node, new)

    def _size(self, value: ir.Value, axis: int) -> int | None:
        tensor = constant(value)
        if tensor is not None:
            sizes = extents(tensor)
            return sizes[axis] if len(sizes) >= -axis else None
        shape = self._facts.shape(value)
        return shape[axis].value if shape is not None and len(shape) >= -axis else None
