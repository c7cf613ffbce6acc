"""Every GGUF architecture: a seeded tiny model is written as llama.cpp's converter writes it, and read back.

The model rebuilt from the file's own config and weights must give the logits of the original.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFWriter

from onnxforge.models import SourceKind, export_model, open_model
from onnxforge.models.gguf_architectures import ARCHITECTURES, Layout
from onnxforge.models.gguf_tensors import BLOCKS_META
from onnxforge.models.stored_blocks import STORED_BLOCKS

VOCAB = 320
LAYERS = 3
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Case:
    """One architecture: the Hugging Face configuration and what else the GGUF header says."""

    config: dict[str, object] = field(default_factory=dict)
    keys: dict[str, int | float | bool | str] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    """Common configuration entries that the family does not have."""


CASES = {
    "llama": Case({"tie_word_embeddings": True, "rope_theta": 50000.0}),
    "granite": Case(
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.1,
            "logits_scaling": 2.0,
        },
        {"embedding_scale": 3.0, "residual_scale": 0.5, "attention.scale": 0.1, "logit_scale": 2.0},
    ),
    "smollm3": Case({"num_hidden_layers": 4}),
    "qwen2": Case(),
    "qwen3": Case({"head_dim": 32}),
    "gemma": Case({"head_dim": 32}),
    "gemma2": Case(
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8},
        {"attention.sliding_window": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3": Case(
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, "num_hidden_layers": 7},
        {"attention.sliding_window": 8, "rope.freq_base": 1000000.0},
    ),
    "olmo2": Case(),
    "phi3": Case({"sliding_window": None}),
    "phi2": Case({"partial_rotary_factor": 0.5, "num_key_value_heads": 4}, {"rope.dimension_count": 8}),
    "stablelm": Case(
        {"partial_rotary_factor": 0.25, "use_qkv_bias": True},
        {"rope.dimension_count": 4, "use_parallel_residual": False},
    ),
    "starcoder2": Case({"use_bias": True, "sliding_window": None, "tie_word_embeddings": True}),
    "gpt2": Case(
        {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_inner": 96, "n_positions": 128},
        drop=tuple(name for name in _COMMON if name not in ("vocab_size", "bos_token_id", "eos_token_id")),
    ),
}


def byte_tokens() -> list[str]:
    """GPT-2's alphabet of 256 printable characters, in byte order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(rest)) for byte in range(256)]


def build(name: str, **extra: bool) -> torch.nn.Module:
    """The seeded Hugging Face model of a case."""
    case, architecture = CASES[name], ARCHITECTURES[name]
    values = {key: value for key, value in _COMMON.items() if key not in case.drop} | case.config | extra
    config = transformers.AutoConfig.for_model(architecture.model_type, **values)
    torch.manual_seed(7)
    model = getattr(transformers, architecture.causal_class)(config).eval()
    with torch.no_grad():  # norms and biases start at 0 or 1, where a wrong reading would not show
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def stored(name: str, base: str, values: np.ndarray, heads: int) -> np.ndarray:
    """A parameter as the converter stores it: the inverse of what is under test, written independently."""
    layout = ARCHITECTURES[name].layouts.get(base)
    if layout is Layout.ROTARY:
        shape = (heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
    if layout is Layout.TRANSPOSED and values.ndim == 2:
        return np.ascontiguousarray(values.T)
    return values + 1 if layout is Layout.ONE_ADDED else values


def write(path: Path, name: str, model: torch.nn.Module, quantize: str | None = None) -> None:
    """Write ``model`` as a GGUF file of architecture ``name``."""
    case, architecture, config = CASES[name], ARCHITECTURES[name], model.config
    writer = GGUFWriter(path, name)
    heads, kv_heads = (
        config.num_attention_heads,
        getattr(config, "num_key_value_heads", config.num_attention_heads),
    )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(96)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    epsilon = getattr(config, architecture.epsilon)
    (writer.add_layer_norm_rms_eps if "rms" in architecture.epsilon else writer.add_layer_norm_eps)(epsilon)
    if name != "gpt2":
        theta = (config.rope_parameters or {}).get("rope_theta")
        writer.add_float32(f"{name}.rope.freq_base", case.keys.get("rope.freq_base", theta))
        writer.add_uint32(f"{name}.rope.dimension_count", case.keys.get("rope.dimension_count", head_dim))
    for key, value in case.keys.items():
        if key.startswith("rope."):
            continue
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{name}.{key}", value)
    add_tokenizer(writer)
    back = {hf: base for base, hf in (*architecture.outer.items(), *architecture.block.items())}
    tied = config.tie_word_embeddings
    for parameter, tensor in model.state_dict().items():
        stem, _, kind = parameter.rpartition(".")
        inner = stem.removeprefix(f"{architecture.prefix}.")
        index, _, rest = inner.partition(".") if inner != stem else ("", "", stem)
        base = back[rest]
        if base == "output" and tied:
            continue
        values = stored(
            name, base, tensor.numpy().astype(np.float32), kv_heads if base == "attn_k" else heads
        )
        full = f"blk.{index}.{base}.{kind}" if index else f"{base}.{kind}"
        _add_tensor(writer, full, values, quantize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensor(writer: GGUFWriter, name: str, values: np.ndarray, quantize: str | None) -> None:
    from gguf import GGMLQuantizationType, quants

    if quantize and values.ndim == 2:
        kind = GGMLQuantizationType[quantize]
        writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values)


def add_tokenizer(writer: GGUFWriter) -> None:
    """A byte-level vocabulary of three control tokens, the bytes and a few merged tokens."""
    known = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_tokens(), "th", "the", "Ġthe"]
    tokens = [*known, *(f"<|unused|>{index}" for index in range(VOCAB - len(known)))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * 259 + [5] * (VOCAB - 262))
    writer.add_token_merges(["t h", "th e", "Ġ the"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(3, 3 + 24).reshape(2, 12)
    with torch.no_grad():
        return model(ids).logits


def assert_read_back(folder: Path, name: str, original: torch.nn.Module) -> None:
    """Write ``original`` as GGUF; what the file's config and weights make must give its logits."""
    write(folder / "model.gguf", name, original)
    source = open_model(str(folder / "model.gguf"))
    assert source.kind is SourceKind.GGUF
    assert source.config["architectures"] == [ARCHITECTURES[name].causal_class]
    config = transformers.AutoConfig.for_model(**{"model_type": source.config["model_type"], **source.config})
    assert config.tie_word_embeddings == original.config.tie_word_embeddings
    rebuilt = getattr(transformers, ARCHITECTURES[name].causal_class)(config).eval()
    state = {key: torch.from_numpy(value.numpy().copy()) for key, value in source.weights.items()}
    missing, unexpected = rebuilt.load_state_dict(state, strict=False)
    rebuilt.tie_weights()
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config.tie_word_embeddings else set())
    torch.testing.assert_close(logits(rebuilt), logits(original), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_model_read_from_gguf_gives_the_logits_of_the_original(name, tmp_path):
    assert_read_back(tmp_path, name, build(name))


@pytest.mark.parametrize("name", ["granite", "llama", "qwen3", "smollm3"])
def test_the_biases_of_a_projection_move_with_its_rows(name, tmp_path):
    extra = {} if name == "qwen3" else {"mlp_bias": True}
    assert_read_back(tmp_path, name, build(name, attention_bias=True, **extra))


def test_quantized_blocks_stay_reachable_in_the_order_of_the_parameter(tmp_path):
    from gguf import GGMLQuantizationType, quants

    write(tmp_path / "model.gguf", "llama", build("llama"), quantize="Q8_0")
    weights = open_model(str(tmp_path / "model.gguf")).weights
    tensor = weights["model.layers.1.self_attn.q_proj.weight"]
    blocks = tensor.meta[BLOCKS_META]
    assert blocks.type_name == "Q8_0"
    np.testing.assert_array_equal(quants.dequantize(blocks.rows(), GGMLQuantizationType.Q8_0), tensor.numpy())


def test_codes_of_rotary_rows_are_in_the_order_of_the_parameter_and_reach_the_graph(tmp_path):
    write(tmp_path / "model.gguf", "llama", build("llama"), quantize="Q8_0")
    source = open_model(str(tmp_path / "model.gguf"))
    name = "model.layers.1.self_attn.q_proj.weight"
    codes, steps, minimums = source.weights[name].meta[STORED_BLOCKS].read()
    decoded = (codes.reshape(*steps.shape, 32).astype(np.float32) - 128) * steps[..., None]
    assert minimums is None
    np.testing.assert_array_equal(decoded.reshape(codes.shape), source.weights[name].numpy())
    bound = export_model(source).graph.initializers[name].const_value
    assert bound.meta[STORED_BLOCKS] is source.weights[name].meta[STORED_BLOCKS]
