"""Tokens to text: pieces that add up, whole characters only, stop strings over any border."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_artifacts import VOCABULARY, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models

from onnxforge.runtimes.detokenizer import Detokenizer
from onnxforge.runtimes.stop_strings import StopStrings

BYTES = tiny_tokenizer()
TEXTS = [
    "hello the world",
    "日本語の文章です。",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈!",
    "naïve café — “quotes”",
    "a\n\n  b\tc",
    "e\u0301\u0301",
]


def pieces(tokenizer, ids, prompt=()):
    decode = lambda tokens: tokenizer.decode(list(tokens), skip_special_tokens=True)  # noqa: E731
    detokenizer = Detokenizer(decode, list(prompt))
    return [detokenizer.push(token) for token in ids] + [detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_add_up(text):
    found = pieces(BYTES, BYTES.encode(text, add_special_tokens=False).ids)
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)
    assert sum(map(bool, found)) > 1


@given(
    st.lists(st.integers(0, VOCABULARY - 1), max_size=60),
    st.lists(st.integers(0, VOCABULARY - 1), max_size=9),
)
def test_any_tokens_give_the_text_of_decoding_them_at_once(ids, prompt):
    # a prompt that ends inside a character lends its bytes to the first piece
    whole = BYTES.decode(prompt[-6:] + ids)
    start = len(BYTES.decode(prompt[-6:]).rstrip("\ufffd"))
    assert "".join(pieces(BYTES, ids, prompt)) == whole[start:]


@given(st.text(max_size=30))
def test_any_text_streams_without_broken_characters(text):
    found = pieces(BYTES, BYTES.encode(text, add_special_tokens=False).ids)
    assert "".join(found) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


def sentencepiece_like():
    words = ["<unk>", "▁once", "▁upon", "▁a", "▁time", "ly", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def test_spaces_between_words_survive_decoders_that_strip_the_first():
    tokenizer = sentencepiece_like()
    assert pieces(tokenizer, [3, 4, 5], prompt=[1, 2]) == [" a", " time", "ly", ""]
    assert pieces(tokenizer, [1, 2, 3]) == ["once", " upon", " a", ""]


@pytest.mark.parametrize("text", ["é", "日", "🙂", "a🙂b"])
def test_characters_made_of_byte_tokens_come_out_whole(text):
    tokenizer = sentencepiece_like()
    ids = [6 + byte for byte in text.encode()]
    assert "".join(pieces(tokenizer, [1, *ids, 4])) == f"once{text} time"
    assert not any("\ufffd" in piece for piece in pieces(tokenizer, [1, *ids, 4]))


def test_the_cost_of_a_piece_does_not_grow():
    sizes = []

    def decode(tokens):
        sizes.append(len(tokens))
        return BYTES.decode(list(tokens))

    detokenizer = Detokenizer(decode, [10] * 100)
    for token in BYTES.encode("and over and over again " * 50).ids:
        detokenizer.push(token)
    assert max(sizes) <= 8


def cut(text, stops):
    """The definition: everything before the earliest stop string."""
    starts = [text.find(stop) for stop in stops if stop in text]
    return text[: min(starts)] if starts else text


@settings(max_examples=300)
@given(
    st.lists(st.text("ab", max_size=4), max_size=20),
    st.integers(1, 5).flatmap(
        lambda n: st.lists(st.text("ab", min_size=n, max_size=n), min_size=1, max_size=3)
    ),
)
def test_stop_strings_over_any_piece_border(parts, stops):
    watcher = StopStrings(stops)
    shown = ""
    for part in parts:
        shown += watcher.push(part)
        if watcher.found:
            break
    text = "".join(parts)
    assert watcher.found == any(stop in text for stop in stops)
    if not watcher.found:
        # nothing is held back that could not begin a stop string
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)
        shown += watcher.finish()
    assert shown == cut(text, stops)


def test_without_stop_strings_nothing_is_held_back():
    watcher = StopStrings(())
    assert (watcher.push("abc"), watcher.finish(), watcher.found) == ("abc", "", False)
