"""How many channels and heads a model has lost, and how many each place has left: in its metadata, saved.

``onnxforge.channels``, ``onnxforge.query_heads`` and ``onnxforge.key_value_heads``: JSON, by the name of each
place what it has now and what it had at first. Names stay while a model is pruned.
"""

import json
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxforge.passes.prune_groups import PruneGroup, Unit

_KEYS: Mapping[Unit, str] = {
    Unit.CHANNEL: "onnxforge.channels",
    Unit.QUERY_HEAD: "onnxforge.query_heads",
    Unit.KV_GROUP: "onnxforge.key_value_heads",
}
_Record = Mapping[str, tuple[int, int]]
"""By the name of a place, in the graph's order: units now, and at first."""


def remember_units(model: ir.Model, groups: Sequence[PruneGroup], left: Mapping[str, int]) -> None:
    """Keep what ``groups``, all of one unit, had the first time, and what they have now: ``left`` by name, of
    those that were cut."""
    unit = groups[0].unit
    known = _record(model, unit)
    found = {
        group.name: (left.get(group.name, group.units), known.get(group.name, (0, group.units))[1])
        for group in groups
    }
    model.metadata_props[_KEYS[unit]] = json.dumps({**known, **found})


def forget_units(model: ir.Model) -> None:
    """Drop the places that ``model`` no longer has, once layers are gone: their units went with them."""
    names = {name for node in model.graph for name in (node.name, *(value.name for value in node.outputs))}
    for unit, key in _KEYS.items():
        if known := _record(model, unit):
            model.metadata_props[key] = json.dumps({name: known[name] for name in known if name in names})


def units_left(model: ir.Model, unit: Unit) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Units of each place in the graph's order, now and at first; empty where none was removed."""
    record = _record(model, unit).values()
    return tuple(now for now, _ in record), tuple(first for _, first in record)


def removed_units(model: ir.Model) -> dict[str, str]:
    """What ``artifact.json`` says: ``removed_channels: 9600 of 46080``, of the layers that stay."""
    names = {
        Unit.CHANNEL: "removed_channels",
        Unit.QUERY_HEAD: "removed_heads",
        Unit.KV_GROUP: "removed_key_value_heads",
    }
    found = {}
    for unit, name in names.items():
        now, first = (sum(numbers) for numbers in units_left(model, unit))
        if now != first:
            found[name] = f"{first - now} of {first}"
    return found


def _record(model: ir.Model, unit: Unit) -> _Record:
    said = json.loads(model.metadata_props.get(_KEYS[unit], "{}"))
    return {name: (now, first) for name, (now, first) in said.items()}
