"""Tiny seeded models of every family, shared by all tests.

``tiny_source`` gives a Source made from a torch model, ``tiny_torch`` that same model, and ``tiny_export`` a
fresh copy of its exported graph (the export itself, some seconds, happens once per session).
"""

import importlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import onnx_ir as ir
import pytest
from hypothesis import settings

from onnxforge.models.export import export_model
from onnxforge.models.families import FAMILIES
from onnxforge.models.source import Json, Source, SourceKind
from onnxforge.models.tasks import parse_task

os.environ["HF_HUB_OFFLINE"] = "1"  # a misspelt name is looked for on the hub: never from a test
# A shell's background job ignores SIGINT, and so would the children that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that does something else too is not a fault of what is tested.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

VOCAB = 97

_DECODER: dict[str, Json] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MHA: dict[str, Json] = _DECODER | {"num_key_value_heads": 4}
_ENCODER: dict[str, Json] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "id2label": {"0": "a", "1": "b", "2": "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
}
_ROBERTA: dict[str, Json] = _ENCODER | {
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_SLIDING_EVERY_OTHER: list[Json] = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]

TINY: dict[str, dict[str, Json]] = {
    "llama": _DECODER | {"tie_word_embeddings": True},
    "mistral": _DECODER | {"sliding_window": 4, "head_dim": 16},
    "qwen2": _DECODER
    | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2, "tie_word_embeddings": True},
    "qwen3": _DECODER | {"head_dim": 16, "tie_word_embeddings": True},
    "gemma": _DECODER | {"head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gemma2": _DECODER
    | {
        "head_dim": 16,
        "sliding_window": 4,
        "layer_types": _SLIDING_EVERY_OTHER,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 24,
    },
    "gemma3_text": _DECODER
    | {
        "head_dim": 16,
        "sliding_window": 4,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"] * 2,
        "query_pre_attn_scalar": 24,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
    },
    "phi": _DECODER | {"partial_rotary_factor": 0.5},
    "phi3": _DECODER | {"sliding_window": 5},
    "olmo2": _DECODER,
    "granite": _DECODER
    | {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
        "tie_word_embeddings": True,
    },
    "smollm3": _DECODER
    | {"no_rope_layers": [1, 1, 1, 0, 1], "use_sliding_window": False, "tie_word_embeddings": True},
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": 64,
        "n_layer": 5,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "stablelm": _DECODER | {"partial_rotary_factor": 0.5, "use_qkv_bias": True, "qk_layernorm": True},
    "starcoder2": _DECODER | {"sliding_window": 5, "use_bias": True, "tie_word_embeddings": True},
    "cohere": _DECODER | {"logit_scale": 0.25, "use_qk_norm": True},
    "exaone4": _DECODER
    | {
        "sliding_window": 4,
        "sliding_window_pattern": 3,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"] * 2,
    },
    "opt": {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "ffn_dim": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
    },
    "gpt_neox": _MHA | {"rotary_pct": 0.5, "use_parallel_residual": True},
    "bert": _ENCODER,
    "roberta": _ROBERTA,
    "distilbert": {
        "vocab_size": VOCAB,
        "dim": 64,
        "hidden_dim": 80,
        "n_layers": 4,
        "n_heads": 4,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "label2id": {"a": 0, "b": 1, "c": 2},
    },
    "mpnet": _ENCODER | {"pad_token_id": 1, "relative_attention_num_buckets": 32},
    "electra": _ENCODER | {"embedding_size": 32},
    "xlm-roberta": _ROBERTA,
    "modernbert": _ENCODER | {"global_attn_every_n_layers": 3, "local_attention": 6, "num_hidden_layers": 5},
}


def _config(model_type: str, overrides: dict[str, Json]) -> dict[str, Json]:
    return {"model_type": model_type} | TINY[model_type] | overrides


def _make_torch(model_type: str, task: str | None, overrides: dict[str, Json]):
    import torch

    family = FAMILIES[model_type]
    wanted = parse_task(task) if task else next(iter(family.classes))
    configuration = importlib.import_module(
        f"transformers.models.{family.module}.configuration_{family.module}"
    )
    modelling = importlib.import_module(f"transformers.models.{family.module}.modeling_{family.module}")
    config = getattr(configuration, family.config).from_dict(_config(model_type, overrides))
    config._attn_implementation = "eager"
    torch.manual_seed(20)
    model = getattr(modelling, family.classes[wanted])(config).eval()
    with torch.no_grad():
        # Away from the initial state: unit norms and zero biases would hide a dropped or swapped one.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _make_source(model, model_type: str, overrides: dict[str, Json]) -> Source:
    config = _config(model_type, overrides) | {"architectures": [type(model).__name__]}
    weights = {name: ir.tensor(tensor.numpy(), name=name) for name, tensor in model.state_dict().items()}
    return Source(ref=f"tiny-{model_type}", kind=SourceKind.FOLDER, config=config, weights=weights)


def _remembered(make):
    made: dict[str, object] = {}

    def factory(model_type: str, task: str | None = None, **overrides: Json):
        key = repr((model_type, task, sorted(overrides.items())))
        if key not in made:
            made[key] = make(model_type, task, overrides)
        return made[key]

    return factory


@pytest.fixture(scope="session")
def tiny_torch() -> Callable:
    """``tiny_torch(model_type, task=None, **config)``: a seeded torch model in evaluation mode (shared)."""
    return _remembered(_make_torch)


@pytest.fixture(scope="session")
def tiny_source(tiny_torch) -> Callable[..., Source]:
    """``tiny_source(model_type, task=None, **config)``: a Source over the weights of ``tiny_torch``."""
    return _remembered(lambda kind, task, over: _make_source(tiny_torch(kind, task, **over), kind, over))


@pytest.fixture(scope="session")
def tiny_export(tiny_source) -> Callable[..., ir.Model]:
    """``tiny_export(model_type, task=None, **config)``: a fresh copy of the exported graph, free to edit."""
    exported = _remembered(lambda kind, task, over: export_model(tiny_source(kind, task, **over), task))
    return lambda *args, **kwargs: exported(*args, **kwargs).clone()


_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _make_bpe(cut: str, size: int = 600, alphabet: bool = True) -> bytes:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from onnxforge.compiler.text_corpus import HARD, texts

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    patterns = {"llama3": _LLAMA3, "qwen2": _LLAMA3.replace("{1,3}", ""), "gpt2-split": _GPT2}
    if cut in patterns:
        split = pre_tokenizers.Split(Regex(patterns[cut]), "isolated")
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        plain = pre_tokenizers.Sequence([split, last])
    elif cut == "digits":
        plain = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = plain, decoders.ByteLevel()
    specials = ["<|end|>", "<|start|>", "<|end"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet else []
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator([*HARD, *texts(400, specials, seed=5)], trainer)
    return tokenizer.to_str().encode()


@pytest.fixture(scope="session")
def tiny_bpe() -> Callable[..., bytes]:
    """``tiny_bpe(cut, size=600, alphabet=True)``: tokenizer.json of a byte-level BPE that is trained here.

    ``cut``: gpt2, gpt2-split, digits (GPT-2 behind single digits), llama3 or qwen2. Its specials begin alike.
    """
    return cache(_make_bpe)


@pytest.fixture(scope="session", autouse=True)
def _scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What refused compiles keep for their users (reports, reproducers) goes where pytest cleans up."""
    scratch = tmp_path_factory.mktemp("scratch")
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)


Answer = Callable[[str, str], tuple[int, dict[str, str], bytes]]
"""Of a path and an Authorization header: status, headers, body."""


@pytest.fixture
def loopback() -> Iterator[Callable[[Answer], str]]:
    """Serve answers over HTTP on this machine until the test ends; gives the server's address."""
    servers = []

    def serve(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, headers, body = answer(
                    urlsplit(self.path).path, self.headers.get("Authorization", "")
                )
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
