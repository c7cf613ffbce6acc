import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from onnxforge.compiler.eval_text import (
    EvaluationError,
    EvaluationText,
    bos_prefix,
    calibration_text,
    cut,
    evaluation_text,
    sentences,
)


def numbers_tokenizer(bos: bool = False) -> Tokenizer:
    """``"5 7"`` is ids 5, 7."""
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(500)} | {"a": 500}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="1 $A 2", special_tokens=[("1", 1), ("2", 2)]
        )
    return tokenizer


def counting(n: int) -> EvaluationText:
    return EvaluationText("counting", " ".join(str(i) for i in range(n)))


def test_halves_share_no_paragraph():
    def paragraphs(text):
        return {p.strip() for p in re.split(r"\n[ \t]*\n", text) if p.strip()}

    ours, theirs = evaluation_text(), calibration_text()
    assert len(ours.text) > 100_000
    assert len(theirs.text) > 100_000
    assert not paragraphs(ours.text) & paragraphs(theirs.text)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 120), st.integers(3, 40), st.integers(1, 40), st.booleans())
def test_every_token_is_scored_at_most_once_and_in_order(length, window, stride, bos):
    stride = min(stride, window)
    tokenizer = numbers_tokenizer(bos)
    windows, protocol = cut(counting(length), tokenizer, window=window, stride=stride)
    targets = [int(t) for w in windows for t in w.ids[0, w.first :]]
    assert targets == sorted(set(targets))
    assert protocol.scored_tokens == len(targets)
    assert all(w.ids.shape[1] <= window for w in windows)
    assert all((w.ids[0, 0] == 1) for w in windows) if bos else windows[0].ids[0, 0] == 0


def test_overlapping_windows_leave_no_hole():
    windows, _ = cut(counting(40), numbers_tokenizer(), window=16, stride=8)
    assert [int(t) for w in windows for t in w.ids[0, w.first :]] == list(range(1, 40))


@pytest.mark.parametrize(
    ("length", "stride", "dropped"), [(40, 16, 8), (48, 16, 0), (40, 8, 0), (45, 8, 5), (9, 16, 0)]
)
def test_the_protocol_says_how_many_tokens_fill_no_last_window(length, stride, dropped):
    windows, protocol = cut(counting(length), numbers_tokenizer(), window=16, stride=stride)
    assert int(windows[-1].ids[0, -1]) == length - 1 - dropped
    assert protocol.dropped_tokens == dropped
    assert (f", the last {dropped} left out" in protocol.sentence()) == (dropped > 0)


def test_a_limit_spreads_the_windows_and_scores_all_of_each():
    windows, protocol = cut(counting(400), numbers_tokenizer(), window=10, stride=10, limit=4)
    assert [int(w.ids[0, 0]) for w in windows] == [0, 100, 200, 300]
    assert (protocol.windows, protocol.windows_in_text) == (4, 40)
    assert "4 evenly spaced of 40 windows of 10 tokens" in protocol.sentence()
    windows, _ = cut(counting(400), numbers_tokenizer(), window=10, stride=5, limit=4)
    assert all(w.first == 1 for w in windows), "no neighbour scored the overlap, so the window does"


def test_bos_is_what_the_tokenizer_itself_puts_first():
    assert bos_prefix(numbers_tokenizer(bos=True)) == (1,)
    assert bos_prefix(numbers_tokenizer()) == ()


def test_a_short_text_is_one_window():
    windows, _ = cut(counting(5), numbers_tokenizer(), window=512)
    assert np.array_equal(windows[0].ids, [[0, 1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"caf\xe9", "not UTF-8"), (None, "cannot be read")],
)
def test_unusable_files_are_refused(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        evaluation_text(path)


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (8, 9), (8, 0)])
def test_senseless_windows_are_refused(window, stride):
    with pytest.raises(EvaluationError, match="stride"):
        cut(counting(40), numbers_tokenizer(), window=window, stride=stride)


def test_one_token_cannot_be_scored():
    with pytest.raises(EvaluationError, match="1 tokens"):
        cut(EvaluationText("short", "7"), numbers_tokenizer(), window=8)


def test_sentences_are_distinct_prose():
    found = sentences(50)
    assert len(set(found)) == 50
    assert all(s[-1] in ".!?" and "\n" not in s for s in found)
