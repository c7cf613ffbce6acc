"""The files beside the graph, shaped so that every runtime of the field loads the folder unchanged.

Each rule below is there because a loader failed without it; the rules are the constants and small functions.
"""

import json
from collections.abc import Mapping

from onnxforge.compiler.artifact_readme import readme
from onnxforge.compiler.genai_config import genai_config
from onnxforge.compiler.graph_facts import GraphFacts
from onnxforge.compiler.targets import Target
from onnxforge.models.source import Json, Source

NEVER_SHIPPED = {
    "auto_map",  # names Python code to download
    "trust_remote_code",
    "custom_ops_library",  # onnxruntime-genai would load it
    "quantization_config",  # of the checkpoint; the graph's own is in artifact.json
    "_name_or_path",  # a path of the machine that saved the checkpoint
    "_attn_implementation",
    "_attn_implementation_internal",
    "_attn_implementation_autoset",
}
_SELF_MADE = {"config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"}
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def sidecars(
    source: Source, facts: GraphFacts, target: Target, *, task: str, context_length: int, external_data: bool
) -> dict[str, bytes]:
    """Every file of the artifact except the graph, the report and the manifest, by relative path."""
    files = {name: data for name, data in source.sidecars.items() if name not in _SELF_MADE}
    files["config.json"] = _json(_config(source.config, facts, external_data))
    if (tokenizer := source.sidecars.get("tokenizer.json")) is not None:
        files["tokenizer.json"] = _tokenizer(tokenizer)
    tokenizer_config = _read(source, "tokenizer_config.json")
    files["tokenizer_config.json"] = _json(_tokenizer_config(tokenizer_config, facts))
    if facts.layers:
        generation = _generation_config(source)
        files["generation_config.json"] = _json(generation)
        files["genai_config.json"] = _json(
            genai_config(source.config, generation, facts, target, context_length)
        )
    files["README.md"] = readme(source, facts, target, task, context_length).encode()
    return files


def _config(config: Mapping[str, Json], facts: GraphFacts, external_data: bool) -> dict[str, Json]:
    kept = {key: value for key, value in config.items() if key not in NEVER_SHIPPED}
    javascript: dict[str, Json] = {"dtype": "fp32"}
    if facts.cache_dtype != "float32":  # which transformers.js takes it for, whatever the graph says
        javascript["kv_cache_dtype"] = facts.cache_dtype
    if external_data:
        javascript["use_external_data_format"] = {"model.onnx": 1}
    return {**kept, "transformers.js_config": javascript}


def _tokenizer_config(config: dict[str, Json], facts: GraphFacts) -> dict[str, Json]:
    """transformers 5 writes a class that 4.x refuses, and stray input names make optimum's generate fail."""
    kept = {key: value for key, value in config.items() if key not in NEVER_SHIPPED}
    known = str(kept.get("tokenizer_class", "TokenizersBackend"))
    if facts.layers or known == "TokenizersBackend":
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    fed = ("input_ids", "token_type_ids", "attention_mask")
    kept["model_input_names"] = [name for name in fed if name in facts.inputs]
    return kept


def _tokenizer(data: bytes) -> bytes:
    """A byte-level BPE must say so in its decoder alone: onnxruntime-genai guesses the family from it."""
    tokenizer = json.loads(data)
    byte_level = "ByteLevel" in json.dumps(tokenizer.get("pre_tokenizer"))
    if _kind(tokenizer, "model") != "BPE" or not byte_level or _kind(tokenizer, "decoder") == "ByteLevel":
        return data
    tokenizer["decoder"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode()


def _kind(tokenizer: Mapping[str, Json], part: str) -> Json:
    found = tokenizer.get(part)
    return found.get("type") if isinstance(found, dict) else None


def _generation_config(source: Source) -> dict[str, Json]:
    given = _read(source, "generation_config.json")
    kept = {key: value for key, value in given.items() if key not in NEVER_SHIPPED}
    implied = {key: source.config[key] for key in _TOKEN_IDS if source.config.get(key) is not None}
    return {**implied, **kept}


def _read(source: Source, name: str) -> dict[str, Json]:
    data = source.sidecars.get(name)
    return json.loads(data) if data is not None else {}


def _json(content: Mapping[str, Json]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
