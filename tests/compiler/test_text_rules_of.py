"""What a tokenizer.json must say for a graph to read text as it does."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.text_rules_of import TextNotFollowed, shown, text_rules
from onnxforge.passes.text_rules import CUT_OFF, Cut


def edited(stored: bytes, edit: Callable[[dict], object]) -> bytes:
    described = json.loads(stored)
    edit(described)
    return json.dumps(described).encode()


def special(text: str, number: int = 3, **flags: bool) -> dict:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": text} | plain | flags


def test_the_tables_of_a_tokenizer(tiny_bpe):
    rules = text_rules(tiny_bpe("digits"))
    assert rules.cut is Cut.GPT2
    assert [rules.kinds[ord(letter)] for letter in "!é1 \n½_\U000a05cc"] == [
        0,
        1,
        2 | CUT_OFF,
        3,
        3,
        2 | CUT_OFF,
        0,
        0,
    ]
    assert (rules.byte_ids >= 0).all()
    assert rules.merges.shape == (600 - 256 - 3, 3)
    assert {token.text for token in rules.specials} == {"<|end|>", "<|start|>", "<|end"}
    assert (rules.before, rules.after) == ((), ())
    numbers = text_rules(tiny_bpe("qwen2")).kinds
    assert not (numbers & CUT_OFF).any()
    assert text_rules(tiny_bpe("llama3")).number_group == 3


def test_numbers_that_are_cut_off_are_those_of_the_library(tiny_bpe):
    """Its two Unicodes are not of one version: what it cuts off is asked of what cuts."""
    kinds = text_rules(tiny_bpe("digits")).kinds
    odd = np.flatnonzero((kinds & CUT_OFF > 0) != (kinds % CUT_OFF == 2))
    assert len(odd) < 100
    tokenizer = Tokenizer.from_str(tiny_bpe("digits").decode())
    for code in [*odd[:5].tolist(), 0x31, 0x3250]:
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(f"!{chr(code)}!")
        assert (len(pieces) == 3) is bool(kinds[code] & CUT_OFF)


def test_special_tokens_show_nothing_and_added_ones_themselves(tiny_bpe):
    added = edited(
        tiny_bpe("gpt2"), lambda d: d["added_tokens"].append(special("<tool 日>", 600, special=False))
    )
    pieces = shown(added)
    assert pieces[0] == b""
    assert pieces[600] == "<tool 日>".encode()
    assert sorted(piece for piece in pieces if len(piece) == 1) == [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda d: d.update(normalizer={"type": "NFC"}), "normalizer"),
        (lambda d: d["model"].update(byte_fallback=True), "byte_fallback"),
        (lambda d: d["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda d: d["model"].update(dropout=0.1), "dropout"),
        (lambda d: d.update(decoder={"type": "Fuse"}), "decoder"),
        (lambda d: d.update(pre_tokenizer=None), "pre_tokenizer"),
        (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), "add_prefix_space"),
        (lambda d: d["pre_tokenizer"].update(use_regex=False), "pre_tokenizer"),
        (
            lambda d: d.update(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Digits", "individual_digits": False}, d["pre_tokenizer"]],
                }
            ),
            "single digits",
        ),
        (lambda d: d["added_tokens"].append(special("<mask>", lstrip=True)), "lstrip"),
        (lambda d: d["added_tokens"].append(special("|><|")), "overlaps"),
        (lambda d: d["added_tokens"].append(special("a<|end|>a")), "overlaps"),
        (lambda d: d["added_tokens"].append(special("<|start", normalized=True)), "overlaps"),
        (lambda d: d["model"]["merges"].reverse(), "before any merge uses it"),
        (lambda d: d["model"]["merges"].append(d["model"]["merges"][0]), "repetitions"),
    ],
)
def test_what_the_graph_does_not_follow_is_refused(tiny_bpe, edit, says: str):
    with pytest.raises(TextNotFollowed, match=says) as refused:
        text_rules(edited(tiny_bpe("gpt2"), edit))
    assert "Leave --text-io out" in str(refused.value)
    assert isinstance(refused.value, RequestRefused)


def test_another_pattern_is_refused(tiny_bpe):
    def edit(described: dict) -> None:
        described["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\s+"

    with pytest.raises(TextNotFollowed, match="pre_tokenizer"):
        text_rules(edited(tiny_bpe("llama3"), edit))


def test_words_that_are_taken_whole_must_be_what_merges_make(tiny_bpe):
    whole = edited(tiny_bpe("llama3"), lambda d: d["model"].update(ignore_merges=True))
    text_rules(whole)
    short = edited(whole, lambda d: d["model"]["merges"].pop())
    with pytest.raises(TextNotFollowed, match="ignore_merges"):
        text_rules(short)


def test_a_vocabulary_of_words_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(TextNotFollowed, match='model is "WordLevel"'):
        text_rules(tokenizer.to_str().encode())
