"""Four kinds of tokenizers with fewer tokens: they read every text, and what is left is read as it was."""

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from onnxforge.compiler.smaller_tokenizer import smaller_tokenizer
from onnxforge.compiler.text_corpus import HARD, texts
from onnxforge.compiler.tokenizer_pieces import TokenizerNotFollowed, merges_of, token_pieces
from onnxforge.passes.token_counts import TokenCounts

WORDS = [*HARD, *texts(300, [], seed=3)]
SPECIALS = ["<unk>", "<s>", "</s>"]
KINDS = ("byte-level", "byte-fallback", "several-merges", "characters", "wordpiece", "unigram")


def trained(model, trainer, **parts) -> dict:
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(WORDS, trainer)
    return json.loads(tokenizer.to_str())


def metaspace() -> dict:
    return {
        "normalizer": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        "decoder": decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
    }


def byte_fallback(*, several: bool) -> dict:
    """As converted from SentencePiece; with ``several``, every pair that makes a token is a merge."""
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIALS, limit_alphabet=150, show_progress=False
    )
    made = trained(models.BPE(unk_token="<unk>"), trainer, **metaspace())
    model = made["model"]
    model |= {"byte_fallback": True, "fuse_unk": True}
    vocabulary = model["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    if several:
        pairs = [
            (token[:at], token[at:])
            for token in sorted(vocabulary, key=vocabulary.get)
            for at in range(1, len(token))
            if not token.startswith("<") and token[:at] in vocabulary and token[at:] in vocabulary
        ]
        model["merges"] = [list(pair) for pair in pairs]
    return made


@cache
def tokenizer(kind: str) -> bytes:
    """tokenizer.json of a tokenizer trained here, with special tokens and a post-processor."""
    if kind == "byte-level":
        trainer = trainers.BpeTrainer(
            vocab_size=900,
            special_tokens=SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made = trained(
            models.BPE(),
            trainer,
            pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoder=decoders.ByteLevel(),
            post_processor=processors.TemplateProcessing(
                "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
            ),
        )
    elif kind in ("byte-fallback", "several-merges"):
        made = byte_fallback(several=kind == "several-merges")
    elif kind == "characters":
        trainer = trainers.BpeTrainer(
            vocab_size=900, special_tokens=SPECIALS, end_of_word_suffix="</w>", show_progress=False
        )
        made = trained(
            models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"),
            trainer,
            pre_tokenizer=pre_tokenizers.Whitespace(),
            decoder=decoders.BPEDecoder("</w>"),
            post_processor=processors.RobertaProcessing(("</s>", 2), ("<s>", 1)),
        )
    elif kind == "wordpiece":
        trainer = trainers.WordPieceTrainer(vocab_size=1200, special_tokens=SPECIALS, show_progress=False)
        made = trained(
            models.WordPiece(unk_token="<unk>"),
            trainer,
            pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
            decoder=decoders.WordPiece(),
            post_processor=processors.BertProcessing(("</s>", 2), ("<s>", 1)),
        )
        made["padding"] = {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 2,
            "pad_type_id": 0,
            "pad_token": "</s>",
        }
    else:
        trainer = trainers.UnigramTrainer(
            vocab_size=900, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
        )
        made = trained(
            models.Unigram(),
            trainer,
            pre_tokenizer=pre_tokenizers.Metaspace(),
            decoder=decoders.Metaspace(),
        )
    return json.dumps(made).encode()


def opened(stored: bytes) -> Tokenizer:
    made = Tokenizer.from_str(stored.decode())
    made.no_padding()
    return made


def kept_of(kind: str, share: float, seed: int) -> tuple[int, ...]:
    """The tokens needed, and a random share of the others with what they are merged from."""
    pieces = token_pieces(tokenizer(kind))
    size = max(pieces.ids.values()) + 1
    drawn = np.flatnonzero(np.random.default_rng(seed).random(size) < share)
    none = np.zeros(size, np.int64)
    counts = TokenCounts(none, none > 0, none > 0, pieces.parts)
    return tuple(sorted(counts.closure([*pieces.needed, *drawn.tolist()])))


def agree(kind: str, kept: tuple[int, ...], text: str) -> bool:
    """Check one text; True where all of its tokens were kept."""
    before, after = opened(tokenizer(kind)), opened(smaller_tokenizer(tokenizer(kind), kept))
    theirs, ours = (made.encode(text, add_special_tokens=False) for made in (before, after))
    unknown = before.token_to_id("<unk>") in theirs.ids
    same = set(theirs.ids) <= set(kept)
    if same and not (unknown and kind == "wordpiece"):
        assert ours.tokens == theirs.tokens
        assert [kept[number] for number in ours.ids] == theirs.ids
        whole = [made.encode(text).ids for made in (before, after)]
        assert [kept[number] for number in whole[1]] == whole[0], "special tokens are put around it"
    if kind == "wordpiece":
        written = ["".join(token.removeprefix("##") for token in read.tokens) for read in (theirs, ours)]
        assert unknown or written[0] == written[1]
    else:
        assert after.decode(ours.ids, skip_special_tokens=False) == before.decode(
            theirs.ids, skip_special_tokens=False
        )
    return same


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    text=st.one_of(
        st.text(max_size=30), st.lists(st.sampled_from([*WORDS, *SPECIALS]), max_size=3).map(" ".join)
    ),
    share=st.sampled_from((0.0, 0.3, 0.9)),
    seed=st.integers(0, 3),
)
@example(text="the model isn't THERE", share=0.9, seed=0)
def test_every_text_is_read(kind: str, text: str, share: float, seed: int):
    agree(kind, kept_of(kind, share, seed), text)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_kept_tokens_are_read_as_they_were(kind: str):
    """What prune-vocabulary promises: keep what a corpus uses, and the corpus is read as before."""
    before = opened(tokenizer(kind))
    pieces = token_pieces(tokenizer(kind))
    corpus = WORDS[:60]
    used = {number for text in corpus for number in before.encode(text).ids}
    none = np.zeros(1, np.int64)
    kept = tuple(sorted(TokenCounts(none, none > 0, none > 0, pieces.parts).closure({*used, *pieces.needed})))
    assert len(kept) < len(pieces.ids), "nothing was left out: the test proves nothing"
    for text in corpus:
        assert agree(kind, kept, text)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_dense_and_in_order(kind: str):
    kept = kept_of(kind, 0.5, 1)
    before, after = (
        opened(stored).get_vocab() for stored in (tokenizer(kind), smaller_tokenizer(tokenizer(kind), kept))
    )
    assert sorted(after.values()) == list(range(len(kept)))
    assert all(before[token] == kept[number] for token, number in after.items())


def test_the_way_to_a_token_is_kept_where_several_lead_to_it():
    """ "abc" could be a+bc or ab+c; the text merges b+c first, so ab is not needed for it."""
    model = {
        "type": "BPE",
        "vocab": {"a": 0, "b": 1, "c": 2, "bc": 3, "ab": 4, "abc": 5},
        "merges": [["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"]],
    }
    stored = json.dumps({"model": model, "added_tokens": []}).encode()
    assert token_pieces(stored).parts == {3: (1, 2), 4: (0, 1), 5: (1, 2, 0, 3)}


def test_the_lowest_score_of_a_unigram_stays():
    """An unknown character costs 10 more than the worst piece: without that one, others would be cheaper."""
    vocab = [["<unk>", 0.0], ["a", -1.0], ["b", -2.0], ["abab", -50.0], ["ab", -1.5]]
    stored = json.dumps({"model": {"type": "Unigram", "unk_id": 0, "vocab": vocab}}).encode()
    assert token_pieces(stored).needed == {0, 1, 2, 3}


def test_a_piece_with_a_character_that_is_no_token_stays():
    words = {"[UNK]": 0, "a": 1, "##b": 2, "ab": 3, "aç": 4, "##bç": 5, "ba": 6, "##ab": 7}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": words}
    needed = token_pieces(json.dumps({"model": model}).encode()).needed
    assert {token for token, number in words.items() if number in needed} == {
        *("[UNK]", "a", "##b", "aç", "##bç", "ba", "##ab")
    }


def test_merges_of_old_files_are_words():
    assert merges_of({"merges": ["Ġ t", "h e"]}) == [("Ġ", "t"), ("h", "e")]


def described(**changes) -> bytes:
    made = json.loads(tokenizer("byte-level"))
    made["model"] |= changes.pop("model", {})
    return json.dumps(made | changes).encode()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (described(model={"dropout": 0.1}), "drop out at random"),
        (described(post_processor={"type": "Strange"}), "post_processor is 'Strange'"),
        (
            json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}).encode(),
            "a WordLevel, whose words have no smaller pieces",
        ),
        (json.dumps({"model": {"type": "New", "vocab": {}}}).encode(), "a New, which is not known"),
        (
            json.dumps({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0], ["a", -1]]}}).encode(),
            "not all different",
        ),
        (
            described(added_tokens=[{"id": 700, "content": "<s>", "special": True}]),
            "added token '<s>' has two ids",
        ),
    ],
    ids=["dropout", "post-processor", "words", "unknown", "duplicates", "two-ids"],
)
def test_what_is_not_understood_is_refused(stored: bytes, message: str):
    with pytest.raises(TokenizerNotFollowed, match=message):
        token_pieces(stored)


def test_a_choice_without_what_is_needed_is_refused():
    kept = kept_of("byte-level", 0.5, 0)
    with pytest.raises(ValueError, match="not kept"):
        smaller_tokenizer(tokenizer("byte-level"), kept[1:])
