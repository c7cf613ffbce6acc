"""GGUF tokenizers: the cutting rule, special tokens, BOS and the way back to text.

That the ids are llama.cpp's is shown by ``bench/tokenizer_oracle.py``; the ids below were taken from it.
"""

import dataclasses
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from onnxforge.models import SourceError, UnsupportedModel
from onnxforge.models.demo import locate_demo
from onnxforge.models.gguf_file import GgufFile, Value, read_gguf
from onnxforge.models.gguf_pretokenizers import PRE_TOKENIZERS
from onnxforge.models.gguf_tokenizer import stop_ids, tokenizer_files


@pytest.fixture(scope="module")
def demo_file() -> GgufFile:
    return read_gguf(locate_demo("smollm2-135m"))


@pytest.fixture(scope="module")
def demo(demo_file) -> Tokenizer:
    return _tokenizer(demo_file)


def _tokenizer(file: GgufFile) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_files(file, 2048)["tokenizer.json"].decode())


_ALPHABET = tuple(chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 512)))


def _small(**changes: Value | None) -> GgufFile:
    """A vocabulary of three specials, one plain added token, letters and a few merges."""
    tokens = ("<s>", "</s>", "<|im_end|>", "[tool]", *_ALPHABET, "1984"[:2], "1984", "ab", "Ġa")
    kinds = (3, 3, 3, 4, *(1 for _ in tokens[4:]))
    values: dict[str, Value | None] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": kinds,
        "merges": ("1 9", "a b", "Ġ a"),
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    values |= changes
    metadata = {f"tokenizer.ggml.{name}": value for name, value in values.items() if value is not None}
    return GgufFile(Path("small.gguf"), metadata, {})


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Year 1984!", [19840, 216, 33, 41, 40, 36, 17]),
        ("<|im_start|>user\nhi<|im_end|>", [1, 4093, 198, 6004, 2]),
        ("naïve 日本", [3546, 46494, 17097, 241, 115, 40993]),
    ],
)
def test_the_demo_tokenizer_gives_the_ids_of_llama_cpp(demo, text, ids):
    assert demo.encode(text).ids == ids
    assert demo.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_are_skipped_only_on_request(demo):
    ids = demo.encode("<|im_start|>a<|im_end|>").ids
    assert demo.decode(ids, skip_special_tokens=True) == "a"


def test_the_decoder_is_pure_byte_level_and_no_bos_is_added(demo, demo_file):
    written = json.loads(demo.to_str())
    assert written["decoder"]["type"] == "ByteLevel"
    assert [step["type"] for step in written["pre_tokenizer"]["pretokenizers"]] == ["Digits", "ByteLevel"]
    assert demo.encode("").ids == []
    assert demo.get_vocab_size() == 49152
    files = tokenizer_files(demo_file, 8192)
    assert files.keys() == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    }
    assert json.loads(files["tokenizer_config.json"])["model_max_length"] == 8192


@pytest.mark.parametrize(
    ("rule", "pieces"),
    [
        ("gpt-2", ["x", "Ġ1984", "'s", "ĠĠ", "ĠcamelCase", "'", "LL"]),
        ("smollm", ["x", "Ġ", "1", "9", "8", "4", "'s", "ĠĠ", "ĠcamelCase", "'", "LL"]),
        ("qwen2", ["x", "Ġ", "1", "9", "8", "4", "'s", "ĠĠ", "ĠcamelCase", "'LL"]),
        ("llama-bpe", ["x", "Ġ", "198", "4", "'s", "ĠĠ", "ĠcamelCase", "'LL"]),
        ("tekken", ["x", "Ġ", "1", "9", "8", "4", "'s", "ĠĠ", "Ġcamel", "Case", "'LL"]),
        ("gpt-4o", ["x", "Ġ", "198", "4", "'s", "ĠĠ", "Ġcamel", "Case'LL"]),
    ],
)
def test_each_rule_cuts_text_in_its_own_way(rule, pieces):
    cut = _tokenizer(_small(pre=rule)).pre_tokenizer.pre_tokenize_str("x 1984's   camelCase'LL")
    assert [piece for piece, _ in cut] == pieces


@pytest.mark.parametrize("rule", sorted(PRE_TOKENIZERS))
def test_text_survives_every_rule(rule):
    tokenizer = _tokenizer(_small(pre=rule))
    text = "  Größe 3.14\t日本語\r\n\n'tis  I'LL 👩‍👩‍👧 x_y=0x1F; "
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_a_token_that_no_merge_leads_to_is_used_only_where_the_rule_says_so():
    assert "1984" not in _tokenizer(_small(pre="gpt-2")).encode("1984").tokens
    assert _tokenizer(_small(pre="llama-bpe")).encode("198").tokens[1:] == ["19", "8"]


@pytest.mark.parametrize(
    ("changes", "ids"),
    [
        ({}, [4 + 0]),
        ({"add_bos_token": True}, [0, 4]),
        ({"add_eos_token": True}, [4, 1]),
        ({"add_bos_token": True, "add_eos_token": True}, [0, 4, 1]),
        ({"pre": "llama-bpe"}, [0, 4]),
        ({"pre": "llama-bpe", "add_bos_token": False}, [4]),
    ],
)
def test_bos_and_eos_follow_the_file_and_else_the_rule(changes, ids):
    assert _tokenizer(_small(**changes)).encode("!").ids == ids


def test_user_defined_tokens_are_found_in_text_but_are_not_special():
    tokenizer = _tokenizer(_small())
    ids = tokenizer.encode("!<s>[tool]").ids
    assert ids == [4, 0, 3]
    assert tokenizer.decode(ids) == "![tool]"


def test_generation_stops_at_eos_and_at_the_end_of_a_turn():
    assert stop_ids(_small()) == [1, 2]
    assert stop_ids(_small(eot_token_id=0)) == [1, 0, 2]


def _sentencepiece(**changes: Value | None) -> GgufFile:
    """A SentencePiece vocabulary: specials, bytes, letters, and merged pieces that compete by score."""
    special, byte = ("<unk>", "<s>", "</s>", "[tool]"), tuple(f"<0x{code:02X}>" for code in range(256))
    plain = ("▁", "a", "b", "c", "ab", "bc", "▁a", "abc", "▁▁")
    values: dict[str, Value | None] = {
        "model": "llama",
        "tokens": (*special, *byte, *plain),
        "token_type": (2, 3, 3, 4, *[6] * 256, *[1] * len(plain)),
        "scores": (*[0.0] * 260, -9.0, -9.0, -9.0, -9.0, -3.0, -1.0, -2.0, -4.0, -5.0),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "merges": None,
        "pre": None,
    }
    return _small(**(values | changes))


@pytest.mark.parametrize(
    ("text", "prefixed", "bare"),
    [
        ("abc", ["▁a", "bc"], ["abc"]),
        ("ab", ["▁a", "b"], ["ab"]),
        ("a  b", ["▁a", "▁▁", "b"], ["a", "▁▁", "b"]),
        ("cé\n", ["▁", "c", "<0xC3>", "<0xA9>", "<0x0A>"], ["c", "<0xC3>", "<0xA9>", "<0x0A>"]),
        ("b[tool]b</s>", ["▁", "b", "[tool]", "▁", "b", "</s>"], ["b", "[tool]", "b", "</s>"]),
    ],
)
def test_sentencepiece_merges_by_score_and_spells_the_rest_in_bytes(text, prefixed, bare):
    for expected, flag in ((prefixed, True), (bare, False)):
        tokenizer = _tokenizer(_sentencepiece(add_space_prefix=flag))
        encoded = tokenizer.encode(text)
        assert encoded.tokens == ["<s>", *expected]
        if "[tool]" not in text:
            assert tokenizer.decode(encoded.ids) == text


def test_phi3_drops_the_space_after_an_added_token():
    file = _sentencepiece(add_space_prefix=False)
    phi3 = dataclasses.replace(file, metadata={**file.metadata, "general.architecture": "phi3"})
    tokens = _tokens(file)
    shown = [tokens[token] for token in _tokenizer(phi3).encode("[tool] a<s> a").ids]
    assert shown == ["<s>", "[tool]", "a", "<s>", "▁a"]
    assert [tokens[token] for token in _tokenizer(file).encode("[tool] a").ids] == ["<s>", "[tool]", "▁a"]


def test_a_sentencepiece_vocabulary_must_be_whole():
    with pytest.raises(SourceError, match="scores does not have one entry per token"):
        tokenizer_files(_sentencepiece(scores=(0.0,)), 2048)
    tokens = tuple("x" if token == "<0x0A>" else token for token in _tokens(_sentencepiece()))
    with pytest.raises(SourceError, match="1 of the 256 byte tokens are missing, the first is 0xa"):
        tokenizer_files(_sentencepiece(tokens=tokens), 2048)


def _tokens(file: GgufFile) -> tuple[str, ...]:
    return tuple(str(token) for token in file.metadata["tokenizer.ggml.tokens"])


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"pre": "klingon"}, UnsupportedModel, r"pre-tokenizer 'klingon'.*Known: codeshell"),
        ({"pre": None}, UnsupportedModel, "pre-tokenizer None"),
        ({"model": "rwkv"}, UnsupportedModel, r"tokenizer\.ggml\.model is 'rwkv'"),
        ({"tokens": None}, SourceError, "tokenizer.ggml.tokens is missing"),
        ({"tokens": ("a", "a")}, SourceError, "one entry per token"),
        ({"tokens": ("a", "a"), "token_type": (1, 1)}, SourceError, "the same token twice"),
        ({"merges": ("a",)}, SourceError, "not a pair of tokens"),
        ({"merges": ("a zzz",)}, SourceError, "1 merges name tokens that do not exist"),
        ({"bos_token_id": None, "add_bos_token": True}, SourceError, "bos_token_id names no token"),
        ({"bos_token_id": 10**6, "add_bos_token": True}, SourceError, "bos_token_id names no token"),
    ],
)
def test_a_tokenizer_that_cannot_be_exact_is_refused(changes, error, reason):
    with pytest.raises(error, match=reason):
        tokenizer_files(_small(**changes), 2048)
