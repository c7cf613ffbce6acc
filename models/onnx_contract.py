"""An existing graph under the contract: one spelling of inputs, outputs and sizes, whoever exported it.

Before: ``past.0.k [N, 4, P, 64]`` and ``present_key_values.0.key``; after: ``past_key_values.0.key
[batch_size, 4, past_sequence_length, 64]`` and ``present.0.key``. The nodes between are left alone.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from onnxforge.models.errors import SourceError
from onnxforge.models.onnx_file import read_onnx
from onnxforge.models.onnx_names import cache_name, canonical
from onnxforge.models.onnx_symbols import SymbolNames
from onnxforge.models.source import Json

_IDS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
_HEAD_KEYS = ("num_key_value_heads", "num_attention_heads", "n_head")
_GENERATION = "text-generation-with-past"
_BY_CLASS = (
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForMaskedLM", "fill-mask"),
)
_NEEDED = (
    "A decoder needs input_ids, attention_mask, past_key_values.N.key/value -> logits, present.N.key/value; "
    "an encoder needs input_ids, attention_mask -> last_hidden_state or logits. Export it again, for "
    "example with optimum-cli export onnx --task text-generation-with-past"
)


def load_graph(path: Path, config: Mapping[str, Json]) -> ir.Model:
    """Read an ``.onnx`` file and bring its inputs and outputs under the contract.

    Inputs: ``input_ids``, ``attention_mask``, optionally ``position_ids`` and ``token_type_ids`` (int64
    ``[batch_size, sequence_length]``; a decoder's mask has ``total_sequence_length``), and for a decoder
    ``past_key_values.N.key/value [batch_size, kv_heads, past_sequence_length, head_dim]`` in the dtype of the
    file. ``config`` is the ``config.json`` of the model. Weights stay in their files.

    Raises:
        SourceError: unreadable (see :func:`~onnxforge.models.onnx_file.read_onnx`), or its inputs and outputs
            do not fit; the message lists those that were found and what was needed.
    """
    model = read_onnx(path).model()
    graph = model.graph
    _drop_initializer_inputs(graph)
    found = _signature(graph)
    problems = _rename(graph)
    task, symbols = _task(graph, config), SymbolNames()
    if task is None:
        problems.append("they fit neither a decoder with a key/value cache nor an encoder")
    elif task == _GENERATION:
        problems += _decoder(graph, config, symbols)
    else:
        problems += _encoder(graph, symbols)
    context = next((config[key] for key in _CONTEXT_KEYS if isinstance(config.get(key), int)), None)
    if context is None:
        problems.append(
            "config.json beside it has no max_position_embeddings, so the context length is not known"
        )
    if problems:
        raise SourceError.listing(f"{path}: inputs and outputs are {found}", problems, f"{_NEEDED}.")
    symbols.apply(graph)
    model.metadata_props["onnxforge.task"] = str(task)
    model.metadata_props["onnxforge.model_type"] = str(config.get("model_type", "unknown"))
    model.metadata_props["onnxforge.context_length"] = str(context)
    model.metadata_props["onnxforge.source"] = path.name
    return model


def _drop_initializer_inputs(graph: ir.Graph) -> None:
    """Before IR version 4 every weight was also listed as an input."""
    kept = [value for value in graph.inputs if not value.is_initializer()]
    graph.inputs[:] = kept


def _signature(graph: ir.Graph) -> str:
    def spell(values: list[ir.Value]) -> str:
        shown = [f"{value.name}{value.shape if value.shape is not None else ''}" for value in values[:8]]
        return ", ".join(shown) + (f", and {len(values) - 8} more" if len(values) > 8 else "")

    return f"{spell(list(graph.inputs))} -> {spell(list(graph.outputs))}"


def _rename(graph: ir.Graph) -> list[str]:
    """Give inputs and outputs their canonical names; sort the inputs; report what has no name in the "
    "contract."""
    problems: list[str] = []
    taken = {value.name for node in graph.all_nodes() for value in node.outputs} | set(graph.initializers)
    names: dict[str, ir.Value] = {}
    for values, is_input in ((graph.inputs, True), (graph.outputs, False)):
        for value in values:
            name = canonical(value.name or "", is_input)
            if name is None:
                if is_input:
                    problems.append(f"input {value.name!r} has no place in the contract")
                continue
            if name in names and names[name] is not value:
                problems.append(f"{names[name].name!r} and {value.name!r} both stand for {name!r}")
            elif value.name != name and name in taken:
                problems.append(
                    f"{value.name!r} stands for {name!r}, a name that another value of the graph has"
                )
            names.setdefault(name, value)
    if not problems:
        for name, value in names.items():
            value.name = name
        graph.inputs[:] = sorted(graph.inputs, key=_rank)
        graph.outputs[:] = sorted(graph.outputs, key=_rank)
    return problems


def _rank(value: ir.Value) -> tuple[int, int, str]:
    name = value.name or ""
    if name in _IDS:
        return (0, _IDS.index(name), "")
    cache = cache_name(name, True)
    return (2, cache.layer, cache.kind) if cache is not None else (1, 0, "")


def _by_name(values: list[ir.Value]) -> dict[str, ir.Value]:
    return {value.name or "": value for value in values}


def _task(graph: ir.Graph, config: Mapping[str, Json]) -> str | None:
    inputs, outputs = _by_name(list(graph.inputs)), _by_name(list(graph.outputs))
    if "input_ids" not in inputs:
        return None
    if any(name.startswith("past_key_values.") for name in inputs):
        return _GENERATION if "logits" in outputs else None
    if "last_hidden_state" in outputs:
        return "feature-extraction"
    if "logits" not in outputs:
        return None
    classes = config.get("architectures")
    name = str(classes[0]) if isinstance(classes, list) and classes else ""
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return None
    task = next((task for ending, task in _BY_CLASS if name.endswith(ending)), None)
    shape = outputs["logits"].shape
    return task or ("text-classification" if shape is not None and len(shape) == 2 else None)


def _decoder(graph: ir.Graph, config: Mapping[str, Json], symbols: SymbolNames) -> list[str]:
    inputs, outputs = _by_name(list(graph.inputs)), _by_name(list(graph.outputs))
    problems = [f"input {name!r} is missing" for name in _IDS[:2] if name not in inputs]
    layers = {cache.layer for name in inputs if (cache := cache_name(name, True)) is not None}
    if layers != set(range(len(layers))):
        problems.append(f"cache layers are {sorted(layers)}; 0, 1, 2, ... without gaps were needed")
    names = [f"{layer}.{kind}" for layer in sorted(layers) for kind in ("key", "value")]
    problems += [
        f"input past_key_values.{n} is missing" for n in names if f"past_key_values.{n}" not in inputs
    ]
    problems += [f"output present.{n} is missing" for n in names if f"present.{n}" not in outputs]
    if problems:
        return problems
    problems += _ids(inputs, {"attention_mask": "total_sequence_length"}, symbols)
    for name in names:
        past, present = inputs[f"past_key_values.{name}"], outputs[f"present.{name}"]
        sizes = _head_sizes(past, present, config)
        if sizes is None:
            problems.append(f"{past.name} has shape {past.shape}; static heads and head size were needed")
            continue
        symbols.set_shape(past, ["batch_size", sizes[0], "past_sequence_length", sizes[1]])
        symbols.set_shape(present, ["batch_size", sizes[0], "total_sequence_length", sizes[1]])
    logits = outputs["logits"]
    vocabulary = _last(logits) or _natural(config.get("vocab_size"))
    symbols.set_shape(logits, ["batch_size", "sequence_length", vocabulary or "vocab_size"])
    return problems


def _encoder(graph: ir.Graph, symbols: SymbolNames) -> list[str]:
    inputs, outputs = _by_name(list(graph.inputs)), _by_name(list(graph.outputs))
    problems = [] if "attention_mask" in inputs else ["input 'attention_mask' is missing"]
    problems += _ids(inputs, {}, symbols)
    hidden = outputs.get("last_hidden_state")
    if hidden is not None and (width := _last(hidden)) is not None:
        symbols.set_shape(hidden, ["batch_size", "sequence_length", width])
    return problems


def _ids(inputs: Mapping[str, ir.Value], lengths: Mapping[str, str], symbols: SymbolNames) -> list[str]:
    """Check the integer inputs and name their sizes."""
    problems: list[str] = []
    for name in _IDS:
        value = inputs.get(name)
        if value is None:
            continue
        if value.dtype is not ir.DataType.INT64:
            problems.append(f"{name} is {value.dtype}; INT64 was needed")
        if value.shape is None or len(value.shape) != 2 or any(isinstance(dim, int) for dim in value.shape):
            problems.append(f"{name} has shape {value.shape}; two dynamic sizes were needed")
        symbols.set_shape(value, ["batch_size", lengths.get(name, "sequence_length")])
    return problems


def _head_sizes(past: ir.Value, present: ir.Value, config: Mapping[str, Json]) -> tuple[int, int] | None:
    """Heads and head size of a cache: from the graph where they are static, else from config.json."""
    heads = _static(past, 1) or _static(present, 1)
    size = _static(past, 3) or _static(present, 3)
    heads = heads or next((n for key in _HEAD_KEYS if (n := _natural(config.get(key))) is not None), None)
    width, count = _natural(config.get("hidden_size")), _natural(config.get("num_attention_heads"))
    derived = width // count if width is not None and count is not None else None
    size = size or _natural(config.get("head_dim")) or derived
    return (heads, size) if heads is not None and size is not None else None


def _static(value: ir.Value, axis: int) -> int | None:
    if value.shape is None or len(value.shape) != 4:
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def _last(value: ir.Value) -> int | None:
    dim = value.shape[-1] if value.shape is not None and len(value.shape) > 0 else None
    return dim if isinstance(dim, int) else None


def _natural(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
