"""How many channels and heads a model has lost, and how many each place has left: in its metadata, saved."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxforge.passes.prune_groups import PruneGroup, Unit

_KEYS: Mapping[Unit, str] = {
    Unit.CHANNEL: "onnxforge.channels",
    Unit.QUERY_HEAD: "onnxforge.query_heads",
    Unit.KV_GROUP: "onnxforge.key_value_heads",
}


def remember_units(model: ir.Model, groups: Sequence[PruneGroup], left: Mapping[str, int]) -> None:
    """Keep what ``groups``, all of one unit, had the first time, and what they have now: ``left`` by name, of
    those that were cut."""
    unit = groups[0].unit
    _, first = _record(model, unit)
    had = first or tuple(group.units for group in groups)
    now = tuple(left.get(group.name, group.units) for group in groups)
    model.metadata_props[_KEYS[unit]] = f"{_joined(now)}/{_joined(had)}"


def units_left(model: ir.Model, unit: Unit) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Units of each place in the graph's order, now and at first; empty where none was removed."""
    return _record(model, unit)


def removed_units(model: ir.Model) -> dict[str, str]:
    """What ``artifact.json`` says: ``removed_channels: 9600 of 46080``."""
    names = {
        Unit.CHANNEL: "removed_channels",
        Unit.QUERY_HEAD: "removed_heads",
        Unit.KV_GROUP: "removed_key_value_heads",
    }
    found = {}
    for unit, name in names.items():
        now, first = _record(model, unit)
        if first:
            found[name] = f"{sum(first) - sum(now)} of {sum(first)}"
    return found


def _record(model: ir.Model, unit: Unit) -> tuple[tuple[int, ...], tuple[int, ...]]:
    now, _, first = model.metadata_props.get(_KEYS[unit], "").partition("/")
    return _numbers(now), _numbers(first)


def _joined(numbers: tuple[int, ...]) -> str:
    return "+".join(map(str, numbers))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split("+") if word)
