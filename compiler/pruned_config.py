"""``config.json`` of a model that has lost layers or heads: loaders of the field size their buffers by it.

Each rule takes the configuration and the finished graph and gives the keys that change. What the graph says
itself is read off it; which layers are gone is in its metadata (:mod:`onnxforge.passes.removed_layers`).
"""

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from onnxforge.compiler.graph_facts import graph_facts
from onnxforge.models.source import Json
from onnxforge.passes.layers import LayerUnit
from onnxforge.passes.matching import int_attribute
from onnxforge.passes.prune_groups import Unit
from onnxforge.passes.removed_layers import removed, without
from onnxforge.passes.removed_units import removed_units, units_left
from onnxforge.passes.unpruned import unpruned

Rule = Callable[[Mapping[str, Json], ir.Model], Mapping[str, Json]]

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim")
_PER_LAYER = (
    "attention_layers", "attn_layers", "attn_type_list", "block_types", "layer_types", "layers_block_type",
    "mlp_layer_types", "no_rope_layers", "num_key_value_heads", "sliding_window_layers",
)  # fmt: skip
"""Keys that may hold one entry for each layer."""
_FIRST_OF = ("first_k_dense_replace", "max_window_layers")
"""Keys that say of how many layers, from the first, something holds."""
_WINDOWED = ("Attention", "GroupQueryAttention", "MultiHeadAttention")


def pruned_config(config: Mapping[str, Json], model: ir.Model) -> Mapping[str, Json]:
    """``config`` of the source as it holds for the finished ``model``: the same where nothing was removed."""
    changed = dict(config)
    for rule in _RULES:
        changed |= rule(changed, model)
    return changed


def pruned_parts(model: ir.Model) -> dict[str, str]:
    """What ``artifact.json`` says: the layers, attentions and MLPs that are gone, by their numbers in the
    source, joined by ``+``; and how many channels and heads of those that stay."""
    found = {f"removed_{unit}s": "+".join(map(str, removed(model, unit))) for unit in LayerUnit}
    return {key: numbers for key, numbers in found.items() if numbers} | removed_units(model)


def _depth(config: Mapping[str, Json], model: ir.Model) -> Mapping[str, Json]:
    """The number of layers, and what is said of each. A layer without an attention has no cache, so it does
    not count: loaders make as many caches as there are layers."""
    keys = [key for key in _LAYERS if isinstance(config.get(key), int)]
    gone = without(model, LayerUnit.ATTENTION)
    if not keys or not gone:
        return {}
    layers = config[keys[0]]
    assert isinstance(layers, int)
    kept = [number for number in range(layers) if number not in gone]
    changed: dict[str, Json] = {key: len(kept) for key in keys if config[key] == layers}
    for key in _PER_LAYER:
        values = config.get(key)
        if isinstance(values, list) and len(values) == layers:
            changed[key] = [values[number] for number in kept]
    for key in _FIRST_OF:
        first = config.get(key)
        if isinstance(first, int):
            changed[key] = sum(number < first for number in kept)
    whole = unpruned(model)
    return changed | _written_out(config, layers, kept, _attentions(whole) if whole is not None else [])


def _written_out(
    config: Mapping[str, Json], layers: int, kept: Sequence[int], attentions: Sequence[ir.Node]
) -> dict[str, Json]:
    """Lists in place of patterns ("every third layer is global"), which no longer fit.

    A pattern may stand in ``config.json`` or be the default of its class; ``attentions``, those of the whole
    model, show it.
    """
    found: dict[str, Json] = {}
    windows = [int_attribute(node, "local_window_size", -1) > 0 for node in attentions]
    every = config.get("global_attn_every_n_layers")
    if isinstance(every, int):  # ModernBERT, whose windows are masks
        windows = [bool(number % every) for number in range(layers)]
    if config.get("layer_types") is None and len(windows) == layers and len(set(windows)) > 1:
        found["layer_types"] = [("full_attention", "sliding_attention")[windows[n]] for n in kept]
    rotations = [int_attribute(node, "do_rotary", 0) for node in attentions]
    if config.get("no_rope_layers") is None and len(rotations) == layers and len(set(rotations)) > 1:
        found["no_rope_layers"] = [rotations[n] for n in kept]
    pattern = config.get("attention_types")  # GPT-Neo: [[["global", "local"], 12]]
    if isinstance(pattern, list):
        flat = [kind for kinds, times in _repeated(pattern) for _ in range(times) for kind in kinds]
        if len(flat) == layers:
            found["attention_types"] = [[[flat[number] for number in kept], 1]]
    return found


def _repeated(pattern: list[Json]) -> list[tuple[list[Json], int]]:
    pairs = [item for item in pattern if isinstance(item, list) and len(item) == 2]
    return [(kinds, times) for kinds, times in pairs if isinstance(kinds, list) and isinstance(times, int)]


def _heads(config: Mapping[str, Json], model: ir.Model) -> Mapping[str, Json]:
    """The number of heads, where all layers have the same; ``config.json`` has no words for anything else."""
    attentions = _attentions(model)
    queries = {int_attribute(node, "num_heads", 0) for node in attentions}
    values = {int_attribute(node, "kv_num_heads", 0) for node in attentions}
    changed: dict[str, Json] = {}
    key = next((key for key in _HEADS if isinstance(config.get(key), int)), None)
    if key is None or len(queries) != 1 or len(values) != 1 or 0 in queries:
        return {}
    if queries != {config[key]}:
        changed[key] = queries.pop()
        facts = graph_facts(model)
        if facts.head_size:
            changed["head_dim"] = facts.head_size
    groups = config.get("num_key_value_heads", config[key])
    if 0 not in values and values != {groups}:
        changed["num_key_value_heads"] = values.pop()
    return changed


def _width(config: Mapping[str, Json], model: ir.Model) -> Mapping[str, Json]:
    """The channels of an FFN, where all layers have the same."""
    now, first = units_left(model, Unit.CHANNEL)
    key = next((key for key in _WIDTHS if isinstance(config.get(key), int)), None)
    if key is None or len(set(now)) != 1 or set(first) != {config[key]}:
        return {}
    return {key: now[0]}


def _attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in _WINDOWED]


_RULES: tuple[Rule, ...] = (_depth, _heads, _width)
"""In order; a later one sees what an earlier one changed."""
