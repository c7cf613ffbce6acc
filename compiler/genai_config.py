"""``genai_config.json``: what onnxruntime-genai wants to know, in the keys that it knows.

It throws on any key it does not know, and unknown session keys become ONNX Runtime config entries; so nothing
that it is not documented to read may stand here (read off its 0.18 loader).
"""

from collections.abc import Mapping

from onnxforge.compiler.graph_facts import GraphFacts
from onnxforge.compiler.targets import Target
from onnxforge.models.source import Json

KNOWN_TYPES = {
    "chatglm", "ernie4_5", "gemma", "gemma2", "gemma3_text", "granite", "internlm2", "llama",
    "mistral", "nemotron", "olmo", "phi", "phi3", "phi3small", "phimoe", "qwen2", "qwen3", "smollm3",
}  # fmt: skip
"""Plain decoders that it knows by name. Every other family runs as its generic ``decoder``. So does gpt2: by
that name it expects one cache tensor for keys and values together."""

_SEARCH: Mapping[str, Json] = {
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": True,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}
_PROVIDERS: Mapping[str, tuple[str, ...]] = {"CUDAExecutionProvider": ("cuda",)}
"""The names that it has for providers; the CPU is what it takes when none is named."""
_FROM_GENERATION = ("do_sample", "repetition_penalty", "temperature", "top_k", "top_p")


def genai_config(
    config: Mapping[str, Json],
    generation: Mapping[str, Json],
    facts: GraphFacts,
    target: Target,
    context_length: int,
) -> dict[str, Json]:
    """The whole file, for a decoder whose graph has the contract that ``facts`` tells of."""
    chosen = {key: generation[key] for key in _FROM_GENERATION if generation.get(key) is not None}
    search = {
        **_SEARCH,
        **chosen,
        "max_length": context_length,
        "past_present_share_buffer": facts.shared_cache,
    }
    return {"model": _model(config, generation, facts, target, context_length), "search": search}


def _model(
    config: Mapping[str, Json],
    generation: Mapping[str, Json],
    facts: GraphFacts,
    target: Target,
    context_length: int,
) -> dict[str, Json]:
    model_type = str(config.get("model_type"))
    return {
        **_token_ids(config, generation),
        "context_length": context_length,
        "decoder": {
            "session_options": {
                "log_id": "onnxruntime-genai",
                **target.session,
                "provider_options": [{name: {}} for name in _PROVIDERS.get(target.provider, ())],
            },
            "filename": "onnx/model.onnx",
            "head_size": facts.head_size,
            "hidden_size": _number(config, "hidden_size", "n_embd"),
            "inputs": _inputs(facts),
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
            "num_attention_heads": _number(config, "num_attention_heads", "n_head"),
            "num_hidden_layers": facts.layers,
            "num_key_value_heads": facts.kv_heads,
        },
        "type": model_type if model_type in KNOWN_TYPES else "decoder",
        "vocab_size": _number(config, "vocab_size"),
    }


def _inputs(facts: GraphFacts) -> dict[str, Json]:
    plain: dict[str, Json] = {
        name: name for name in ("input_ids", "attention_mask", "position_ids") if name in facts.inputs
    }
    return {
        **plain,
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }


def _token_ids(config: Mapping[str, Json], generation: Mapping[str, Json]) -> dict[str, Json]:
    """Beginning, end and padding. Generation's own win; padding falls back to the first end token."""
    both = {**config, **{key: value for key, value in generation.items() if value is not None}}
    ids: dict[str, Json] = {
        key: both[key]
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
        if both.get(key) is not None
    }
    end = ids.get("eos_token_id")
    first = end[0] if isinstance(end, list) and end else end
    if first is not None:
        ids.setdefault("bos_token_id", first)
        ids.setdefault("pad_token_id", first)
    return ids


def _number(config: Mapping[str, Json], *names: str) -> int:
    found = next((config[name] for name in names if config.get(name) is not None), 0)
    return int(found) if isinstance(found, int | float) else 0
