"""What differs between GGUF architectures: one record each, and nothing else.

A GGUF file names tensors ``blk.3.attn_q.weight``; the Hugging Face class of the same model names its
parameters ``model.layers.3.self_attn.q_proj.weight``. Names follow the GGUF specification's list of
standardised tensor names and the parameter names of the transformers classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Layout(StrEnum):
    """How the stored values of a tensor differ from the Hugging Face parameter."""

    PLAIN = "plain"
    ROTARY = "rotary"
    """Rows of each head are interleaved (real, imaginary, real, ...); Hugging Face keeps the two halves."""
    TRANSPOSED = "transposed"
    """Hugging Face holds ``[in, out]`` (GPT-2's Conv1D), GGUF ``[out, in]``."""
    ONE_ADDED = "one added"
    """Gemma's norms multiply by ``1 + weight``; GGUF stores the sum."""


@dataclass(frozen=True)
class Architecture:
    """How one GGUF architecture becomes a Hugging Face model."""

    model_type: str
    causal_class: str
    outer: Mapping[str, str]
    """Tensors outside the blocks, without ``.weight``/``.bias``."""
    block: Mapping[str, str]
    """Tensors of a block; the Hugging Face side is relative to :attr:`prefix`."""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """GGUF names (as in :attr:`outer` and :attr:`block`) whose values are stored differently."""
    prefix: str = "model.layers"
    activation: str = "silu"
    epsilon: str = "rms_norm_eps"
    """Name of the norm's epsilon in config.json."""
    unlisted: frozenset[str] = frozenset()
    """Tensors that hold no parameter: tables that the config describes."""


_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_LLAMA = {**_ATTENTION, **_GATED, "ffn_norm": "post_attention_layernorm"}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_SANDWICH = {
    **_ATTENTION,
    **_GATED,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROTARY = {"attn_q": Layout.ROTARY, "attn_k": Layout.ROTARY}
_ROPE_TABLE = frozenset({"rope_freqs"})


def _ones(*names: str) -> dict[str, Layout]:
    return dict.fromkeys(names, Layout.ONE_ADDED)


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM", _OUTER, _LLAMA, _ROTARY, unlisted=_ROPE_TABLE),
    "granite": Architecture("granite", "GraniteForCausalLM", _OUTER, _LLAMA, _ROTARY),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", _OUTER, _LLAMA, _ROTARY),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _OUTER, _LLAMA),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _OUTER, {**_LLAMA, **_QK_NORM}),
    "gemma": Architecture(
        "gemma",
        "GemmaForCausalLM",
        _OUTER,
        _LLAMA,
        _ones("output_norm", "attn_norm", "ffn_norm"),
        activation="gelu_pytorch_tanh",
    ),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        _OUTER,
        _SANDWICH,
        _ones("output_norm", "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
        activation="gelu_pytorch_tanh",
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _OUTER,
        {**_SANDWICH, **_QK_NORM},
        _ones(
            "output_norm",
            "attn_norm",
            "post_attention_norm",
            "ffn_norm",
            "post_ffw_norm",
            "attn_q_norm",
            "attn_k_norm",
        ),
        activation="gelu_pytorch_tanh",
    ),
    "olmo2": Architecture(
        "olmo2",
        "Olmo2ForCausalLM",
        _OUTER,
        {
            **{name: _ATTENTION[name] for name in ("attn_q", "attn_k", "attn_v", "attn_output")},
            **_GATED,
            **_QK_NORM,
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        _OUTER,
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
    "phi2": Architecture(
        "phi",
        "PhiForCausalLM",
        {**_OUTER, "output_norm": "model.final_layernorm"},
        {
            **_ATTENTION,
            "attn_output": "self_attn.dense",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
        },
        activation="gelu_new",
        epsilon="layer_norm_eps",
    ),
    "stablelm": Architecture("stablelm", "StableLmForCausalLM", _OUTER, _LLAMA, epsilon="layer_norm_eps"),
    "starcoder2": Architecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        _OUTER,
        {
            **_ATTENTION,
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        activation="gelu_pytorch_tanh",
        epsilon="norm_epsilon",
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), Layout.TRANSPOSED),
        prefix="transformer.h",
        activation="gelu_new",
        epsilon="layer_norm_epsilon",
    ),
}
