"""The files beside the graph: each rule that a loader of the field failed without."""

import json
from dataclasses import replace

import pytest

from onnxforge.compiler.graph_facts import GraphFacts
from onnxforge.compiler.sidecars import sidecars
from onnxforge.compiler.targets import TARGETS
from onnxforge.models.source import Source, SourceKind

DECODER = GraphFacts(("input_ids", "attention_mask", "past_key_values.0.key"), 2, 3, 64, shared_cache=True)
ENCODER = GraphFacts(("input_ids", "attention_mask", "token_type_ids"), 0, 0, 0, shared_cache=False)
KNOWN = {
    "model": {
        "bos_token_id", "context_length", "decoder", "eos_token_id", "pad_token_id", "type", "vocab_size",
    },
    "decoder": {
        "session_options", "filename", "head_size", "hidden_size", "inputs", "outputs", "num_attention_heads",
        "num_hidden_layers", "num_key_value_heads",
    },
    "search": {
        "diversity_penalty", "do_sample", "early_stopping", "length_penalty", "max_length", "min_length",
        "no_repeat_ngram_size", "num_beams", "num_return_sequences", "past_present_share_buffer",
        "repetition_penalty", "temperature", "top_k", "top_p",
    },
}  # fmt: skip
"""Keys in a file that onnxruntime-genai 0.18 is known to load; it throws on any other."""


def source(**sidecar: object) -> Source:
    config = {
        "model_type": "llama",
        "hidden_size": 192,
        "num_attention_heads": 3,
        "vocab_size": 100,
        "eos_token_id": 2,
        "auto_map": {"AutoConfig": "evil.py"},
        "quantization_config": {"bits": 4},
    }
    files = {name.replace("__", "."): json.dumps(content).encode() for name, content in sidecar.items()}
    return Source(ref="m", kind=SourceKind.FOLDER, config=config, sidecars=files)


def made(given: Source, facts: GraphFacts = DECODER, *, external_data: bool = True) -> dict[str, dict]:
    task = "text-generation-with-past" if facts.layers else "feature-extraction"
    files = sidecars(given, facts, TARGETS[0], task=task, context_length=512, external_data=external_data)
    return {name: json.loads(data) for name, data in files.items() if name.endswith(".json")}


def test_config():
    config = made(source())["config.json"]
    assert config["transformers.js_config"] == {
        "dtype": "fp32",
        "use_external_data_format": {"model.onnx": 1},
    }
    assert not {"auto_map", "quantization_config"} & set(config)
    assert config["hidden_size"] == 192
    inline = made(source(), external_data=False)["config.json"]
    assert "use_external_data_format" not in inline["transformers.js_config"]


def test_genai_config_has_known_keys_only():
    genai = made(
        source(generation_config__json={"eos_token_id": [2, 5], "top_k": 7, "cache_implementation": "x"})
    )
    config = genai["genai_config.json"]
    assert set(config) == {"model", "search"}
    assert set(config["model"]) == KNOWN["model"]
    assert set(config["model"]["decoder"]) == KNOWN["decoder"]
    assert set(config["search"]) == KNOWN["search"]
    assert config["model"]["type"] == "llama"
    assert config["model"]["eos_token_id"] == [2, 5]
    assert config["model"]["pad_token_id"] == 2
    assert config["search"]["top_k"] == 7
    assert config["search"]["max_length"] == 512
    assert config["search"]["past_present_share_buffer"] is True
    assert "position_ids" not in config["model"]["decoder"]["inputs"], "it is folded into the attention"
    assert config["model"]["decoder"]["filename"] == "onnx/model.onnx"


def test_genai_takes_a_family_it_does_not_know_as_a_plain_decoder():
    given = source()
    odd = replace(given, config={**given.config, "model_type": "exaone4"})
    assert made(odd)["genai_config.json"]["model"]["type"] == "decoder"


def test_a_decoder_for_cuda():
    facts = replace(DECODER, cache_dtype="float16")
    target = next(target for target in TARGETS if target.name == "cuda-int8")
    files = sidecars(source(), facts, target, task="x", context_length=512, external_data=False)
    options = json.loads(files["genai_config.json"])["model"]["decoder"]["session_options"]
    assert options == {
        "log_id": "onnxruntime-genai",
        "ep.cuda.fpa_intb_gemm": "1",
        "provider_options": [{"cuda": {}}],
    }
    config = json.loads(files["config.json"])
    assert config["transformers.js_config"] == {"dtype": "fp32", "kv_cache_dtype": "float16"}
    readme = files["README.md"].decode()
    assert "**Not verified on CUDAExecutionProvider**, unless" in readme
    assert "key/value` (float16 `[batch_size" in readme


def test_gpt2_spells_its_sizes_otherwise():
    given = source()
    config = {"model_type": "gpt2", "n_embd": 48, "n_head": 4, "vocab_size": 9}
    model = made(replace(given, config=config))["genai_config.json"]["model"]
    assert model["type"] == "decoder", "by its own name it would get one cache tensor for keys and values"
    decoder = model["decoder"]
    assert (decoder["hidden_size"], decoder["num_attention_heads"]) == (48, 4)


@pytest.mark.parametrize(
    ("facts", "given", "expected"),
    [
        (DECODER, "TokenizersBackend", "PreTrainedTokenizerFast"),
        (DECODER, "LlamaTokenizer", "PreTrainedTokenizerFast"),
        (ENCODER, "BertTokenizer", "BertTokenizer"),
        (ENCODER, "TokenizersBackend", "PreTrainedTokenizerFast"),
    ],
)
def test_tokenizer_class(facts: GraphFacts, given: str, expected: str):
    files = made(source(tokenizer_config__json={"tokenizer_class": given, "auto_map": 1}), facts)
    assert files["tokenizer_config.json"]["tokenizer_class"] == expected
    assert "auto_map" not in files["tokenizer_config.json"]


def test_tokenizer_input_names_are_the_graphs():
    assert made(source())["tokenizer_config.json"]["model_input_names"] == ["input_ids", "attention_mask"]
    names = made(source(), ENCODER)["tokenizer_config.json"]["model_input_names"]
    assert names == ["input_ids", "token_type_ids", "attention_mask"]


def test_byte_level_tokenizers_say_so_in_their_decoder():
    byte_level = {"pre_tokenizer": {"type": "ByteLevel"}, "model": {"type": "BPE"}}
    spm = {"pre_tokenizer": {"type": "Metaspace"}, "model": {"type": "BPE"}, "decoder": {"type": "Sequence"}}
    wrong = byte_level | {"decoder": {"type": "Sequence", "decoders": []}}
    right = byte_level | {"decoder": {"type": "ByteLevel", "add_prefix_space": False}}
    assert made(source(tokenizer__json=wrong))["tokenizer.json"]["decoder"]["type"] == "ByteLevel"
    assert made(source(tokenizer__json=right))["tokenizer.json"] == right, "what is right stays byte for byte"
    assert made(source(tokenizer__json=spm))["tokenizer.json"] == spm


def test_encoders_get_what_sentence_transformers_reads():
    given = source(modules__json=[{"idx": 0, "path": ""}])
    with_pooling = replace(given, sidecars={**given.sidecars, "1_Pooling/config.json": b"{}"})
    files = made(with_pooling, ENCODER)
    assert files["modules.json"] == [{"idx": 0, "path": ""}]
    assert files["1_Pooling/config.json"] == {}
    assert not {"genai_config.json", "generation_config.json"} & set(files)
