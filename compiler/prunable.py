"""``inspect --prunable``: what of a model can be removed, what shrinks with it, what stands in the way."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxforge.compiler import pipeline
from onnxforge.compiler.prune_option import ahead_of_pruning
from onnxforge.compiler.save import GRAPH
from onnxforge.compiler.targets import TARGETS
from onnxforge.passes.layers import LayersNotFound, find_layers
from onnxforge.passes.prune_groups import Prunable, PruneGroup, Refusal, prune_groups

_FLOAT = next(target for target in TARGETS if target.name == "cpu-fp32")


@dataclass(frozen=True)
class GroupFacts:
    """One place of the graph, and what shrinks there together."""

    unit: str
    name: str
    units: int
    parameters: int
    """Elements of weights that one unit holds."""
    at_once: int
    """How many units go at a time: one of each run of query heads that share a key-value head."""
    axes: tuple[str, ...]
    """Every weight, activation and cache, as ``name [axis]``."""


@dataclass(frozen=True)
class PrunableFacts:
    """A whole model."""

    model: str
    parameters: int
    groups: tuple[GroupFacts, ...]
    layers: int
    """Whole layers that can go; 0 with the reason in ``stops``."""
    stops: tuple[str, ...]
    """What cannot shrink, and the node that stands in the way; each reason once, with how often."""


def prunable(ref: str, revision: str | None = None) -> PrunableFacts:
    """Analyse a model as ``compile`` sees it after its fusions, or an artifact as it is.

    Raises:
        SourceError, UnsupportedModel: ``ref`` cannot be opened or exported.
    """
    model = _graph(ref, revision)
    found = prune_groups(model.graph)
    layers, said = _layers(model.graph)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return PrunableFacts(
        model=ref,
        parameters=sum(tensor.size for tensor in tensors if tensor is not None),
        groups=tuple(map(_facts, found.groups)),
        layers=layers,
        stops=(*_stops(found), *said),
    )


def page(facts: PrunableFacts) -> str:
    """The analysis for a terminal: one line for groups that are alike, the first of them in full."""
    lines = [f"{facts.model}: {facts.parameters:,} elements of weights", "  can be removed"]
    for alike in _alike(facts.groups):
        first, total = alike[0], sum(group.parameters * group.units for group in alike)
        lines.append(
            f"    {len(alike):>4} x {first.units} {first.unit}s, {first.parameters:,} elements each, "
            f"{total / max(facts.parameters, 1):.1%} of all in them; at least {first.at_once} at a time"
        )
        lines += [f"           {first.name}", *(f"             {axis}" for axis in first.axes)]
    if facts.layers:
        lines.append(f"    {facts.layers:>4} whole layers")
    if facts.stops:
        lines += ["  cannot be removed", *(f"    {stop}" for stop in facts.stops)]
    return "\n".join(lines)


def _graph(ref: str, revision: str | None) -> ir.Model:
    if (Path(ref) / GRAPH).is_file():
        return ir.load(Path(ref) / GRAPH)
    from onnxforge.models import export_model, open_model  # loads torch

    model = export_model(open_model(ref, revision=revision))
    for step in pipeline.parse(ahead_of_pruning(_FLOAT)):
        step(model)
    return model


def _layers(graph: ir.Graph) -> tuple[int, tuple[str, ...]]:
    try:
        return len(find_layers(graph)), ()
    except LayersNotFound as reason:
        return 0, (f"layers: {reason}",)


def _facts(group: PruneGroup) -> GroupFacts:
    return GroupFacts(
        unit=str(group.unit),
        name=group.name,
        units=group.units,
        parameters=group.parameters(),
        at_once=group.classes,
        axes=tuple(f"{axis.value.name} [{axis.axis}]" for axis in group.axes),
    )


def _alike(groups: Sequence[GroupFacts]) -> list[list[GroupFacts]]:
    """Groups of one size and kind, in the order of the graph."""
    found: dict[tuple[str, int, int], list[GroupFacts]] = {}
    for group in groups:
        found.setdefault((group.unit, group.units, group.parameters), []).append(group)
    return list(found.values())


def _stops(found: Prunable) -> tuple[str, ...]:
    firsts: dict[tuple[str, str], Refusal] = {}
    counts: Counter[tuple[str, str]] = Counter()
    heads = {group.attention for group in found.groups}
    for refusal in found.refusals:
        if refusal.node is not None and refusal.node in heads:
            continue  # its channels cannot go, and its heads can
        key = (refusal.node.op_type if refusal.node is not None else "graph", refusal.reason)
        firsts.setdefault(key, refusal)
        counts[key] += 1
    return tuple(
        f"{counts[key]:>4} x {first.size} wide: {key[0]}: {first.reason} (first "
        f"{first.node.name if first.node is not None else '?'!r}, from {first.value.name!r})"
        for key, first in firsts.items()
    )
