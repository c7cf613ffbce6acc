"""The Hugging Face ``config.json`` of a GGUF file, rebuilt from its metadata."""

from collections.abc import Mapping
from dataclasses import dataclass

from onnxforge.models.errors import SourceError, UnsupportedModel
from onnxforge.models.families import FAMILIES
from onnxforge.models.gguf_architectures import ARCHITECTURES, Architecture
from onnxforge.models.gguf_file import GgufFile, Value
from onnxforge.models.gguf_rope import rope_config
from onnxforge.models.source import Json

_GEMMA2_27B_LAYERS = 46
_GEMMA3_27B_LAYERS = 62
_KEPT_SPECIALS = {"bos": "bos", "eos": "eos", "padding": "pad"}


@dataclass(frozen=True)
class Header:
    """Typed access to the metadata of one architecture (keys are prefixed with its GGUF name)."""

    file: GgufFile
    name: str

    def whole(self, key: str, default: int | None = None) -> int:
        """An integer that must be there unless ``default`` says otherwise."""
        value = self.file.metadata.get(f"{self.name}.{key}", default)
        if isinstance(value, tuple) and value and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, tuple):
            raise UnsupportedModel(
                f"{self.file.path}: {self.name}.{key} differs between layers ({list(value)[:8]}). Models "
                "whose layers are all alike can be compiled."
            )
        raise SourceError(
            f"{self.file.path}: metadata key {self.name}.{key} is {value!r}; an integer was needed. Convert "
            "the model again with a current converter."
        )

    def real(self, key: str) -> float | None:
        """A number, or None when the key is absent."""
        value = self.file.metadata.get(f"{self.name}.{key}")
        return float(value) if isinstance(value, int | float) else None

    def has(self, tensor: str) -> bool:
        """Whether the file holds this tensor."""
        return tensor in self.file.tensors


def architecture_of(file: GgufFile) -> tuple[Architecture, Header]:
    """The record of the file's architecture.

    Raises:
        UnsupportedModel: an architecture without a record; the message lists those that compile.
    """
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = sorted(stored for stored, record in ARCHITECTURES.items() if record.model_type in FAMILIES)
        raise UnsupportedModel(
            f"{file.path}: GGUF architecture {name!r} is not known. Known: "
            f"{', '.join(known)}. "
            "Use the Hugging Face folder of this model instead."
        )
    return ARCHITECTURES[name], Header(file, name)


def rebuild_config(architecture: Architecture, header: Header) -> dict[str, Json]:
    """``config.json`` as the model's own repository would have it, as far as the metadata tells.

    Raises:
        SourceError: a required key is missing or of the wrong type.
        UnsupportedModel: experts, layers that differ, or a position encoding that cannot be reproduced.
    """
    if header.whole("expert_count", 0) > 0:
        raise UnsupportedModel(
            f"{header.file.path}: {header.name} with {header.whole('expert_count')} experts. Mixtures of "
            "experts cannot be compiled; use a dense model."
        )
    sizes = _sizes(header)
    config: dict[str, Json] = {
        "architectures": [architecture.causal_class],
        "model_type": architecture.model_type,
        "vocab_size": _vocabulary(header),
        **sizes,
        "hidden_act": architecture.activation,
        "tie_word_embeddings": not header.has("output.weight"),
        "torch_dtype": "float32",
    }
    epsilon = header.real("attention.layer_norm_rms_epsilon") or header.real("attention.layer_norm_epsilon")
    if epsilon is not None:
        config[architecture.epsilon] = shortest(epsilon)
    config |= _special_ids(header.file.metadata)
    if architecture.model_type != "gpt2":
        config |= rope_config(header.file, header.name, sizes["head_dim"])
    return config | _particulars(header, config)


def _sizes(header: Header) -> dict[str, int]:
    """The sizes of the model by their Hugging Face names, all positive.

    Raises:
        SourceError: one of them is missing, zero or negative.
    """
    heads, hidden = header.whole("attention.head_count"), header.whole("embedding_length")
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": header.whole("feed_forward_length"),
        "num_hidden_layers": header.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.whole("attention.head_count_kv", heads),
        "head_dim": header.whole("attention.key_length", hidden // max(heads, 1)),
        "max_position_embeddings": header.whole("context_length"),
    }
    wrong = [f"{name} is {size}" for name, size in sizes.items() if size < 1]
    if wrong:
        raise SourceError.listing(
            f"{header.file.path}", wrong, "Sizes are positive; convert the model again."
        )
    return sizes


def shortest(value: float) -> float:
    """The shortest decimal that rounds to the same float32: 9.999999747378752e-06 is 1e-05."""
    import numpy as np

    return float(str(np.float32(value)))


def _vocabulary(header: Header) -> int:
    embedding = header.file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise SourceError(
            f"{header.file.path} has no token_embd.weight matrix. It is not a whole language model."
        )
    return embedding.shape[0]


def _special_ids(metadata: Mapping[str, Value]) -> dict[str, Json]:
    result: dict[str, Json] = {}
    for stored, ours in _KEPT_SPECIALS.items():
        value = metadata.get(f"tokenizer.ggml.{stored}_token_id")
        if isinstance(value, int):
            result[f"{ours}_token_id"] = value
    return result


def _particulars(header: Header, config: Mapping[str, Json]) -> dict[str, Json]:
    """Keys that only one family has, by the family's GGUF name."""
    layers, heads = header.whole("block_count"), header.whole("attention.head_count")
    window = header.whole("attention.sliding_window", 0) or None
    wide = header.whole("embedding_length") // heads
    head_dim = config["head_dim"]
    match header.name:
        case "llama" | "smollm3":
            return _biases(header)
        case "granite":
            return {
                **_biases(header),
                **_present(
                    embedding_multiplier=header.real("embedding_scale"),
                    residual_multiplier=header.real("residual_scale"),
                    attention_multiplier=header.real("attention.scale"),
                    logits_scaling=header.real("logit_scale"),
                ),
            }
        case "qwen3":
            return {"attention_bias": header.has("blk.0.attn_q.bias")}
        case "gemma2":
            return {
                "sliding_window": window or 4096,
                "query_pre_attn_scalar": wide if layers == _GEMMA2_27B_LAYERS else head_dim,
                "hidden_activation": config["hidden_act"],
                "attn_logit_softcapping": header.real("attn_logit_softcapping") or 50.0,
                "final_logit_softcapping": header.real("final_logit_softcapping") or 30.0,
            }
        case "gemma3":
            return {
                "sliding_window": window or 1024,
                "sliding_window_pattern": 6,
                "query_pre_attn_scalar": wide if layers == _GEMMA3_27B_LAYERS else head_dim,
                "hidden_activation": config["hidden_act"],
                "rope_local_base_freq": header.real("rope.freq_base_swa") or 10000.0,
                "final_logit_softcapping": header.real("final_logit_softcapping"),
            }
        case "gemma":
            return {"hidden_activation": config["hidden_act"]}
        case "phi3":
            return {"sliding_window": window}
        case "stablelm":
            return {
                "use_qkv_bias": header.has("blk.0.attn_q.bias"),
                "use_parallel_residual": bool(
                    header.file.metadata.get(
                        "stablelm.use_parallel_residual", not header.has("blk.0.ffn_norm.weight")
                    )
                ),
            }
        case "starcoder2":
            return {"use_bias": header.has("blk.0.attn_q.bias"), "sliding_window": window}
        case "gpt2":
            return _gpt2(config)
        case _:
            return {}


def _biases(header: Header) -> dict[str, Json]:
    return {
        "attention_bias": header.has("blk.0.attn_q.bias"),
        "mlp_bias": header.has("blk.0.ffn_gate.bias"),
    }


def _gpt2(config: Mapping[str, Json]) -> dict[str, Json]:
    """GPT-2 spells its sizes in its own way."""
    return {
        "n_embd": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_inner": config["intermediate_size"],
        "n_positions": config["max_position_embeddings"],
        "activation_function": config["hidden_act"],
    }


def _present(**values: float | None) -> dict[str, Json]:
    return {name: shortest(value) for name, value in values.items() if value is not None}
