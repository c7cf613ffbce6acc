"""Two models that read a text as different tokens are held against each other over the same characters."""

import math

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from onnxforge.compiler.eval_text import EvaluationError, EvaluationText, Window, cut
from onnxforge.compiler.parity import Batch, cosines_of_readings
from onnxforge.compiler.perplexity import compare, perplexity
from onnxforge.compiler.retokenized import Reader, same_text

PAIRS = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
SINGLES = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
TEXTS = ["ab" * 20 + "a", "aab" * 9, "b" * 7 + "ab" * 5]


class Fixed:
    """A model whose next-token distribution is always the same."""

    def __init__(self, *probabilities: float) -> None:
        self._logits = np.log(np.array(probabilities, np.float32))

    def logits(self, ids: np.ndarray) -> np.ndarray:
        return np.tile(self._logits, (ids.shape[1], 1))


def test_with_one_tokenizer_it_is_the_usual_perplexity():
    first, second = Fixed(0.2, 0.3, 0.5), Fixed(0.4, 0.4, 0.2)
    windows = [Window(np.array([PAIRS.encode(text).ids]), 1, text) for text in TEXTS]
    usual = compare(first, second, windows)
    found = same_text(Reader(first, PAIRS), Reader(second, PAIRS), TEXTS, 99)
    assert found.ratio == pytest.approx(usual.ratio, rel=1e-9)
    assert found.reference.value == pytest.approx(usual.reference.value, rel=1e-9)
    assert found.candidate.value == pytest.approx(usual.candidate.value, rel=1e-9)
    assert found.growth == 1


def test_a_model_that_gives_the_text_the_same_likelihood_has_ratio_one():
    """A pair of probability 1/4 is as likely as its two letters of 1/2 each."""
    pairs, singles = Fixed(0.25, 0.25, 0.25, 0.25), Fixed(0.5, 0.5)
    found = same_text(Reader(pairs, PAIRS), Reader(singles, SINGLES), ["ab" * 30], 99)
    assert found.ratio == pytest.approx(1, rel=1e-6)
    assert found.reference.value == pytest.approx(4)
    assert found.growth == 2


def test_half_the_likelihood_per_letter_shows_per_token():
    better, worse = Fixed(0.5, 0.5), Fixed(0.25, 0.25, 0.5)
    found = same_text(Reader(better, SINGLES), Reader(worse, SINGLES), ["abab" * 9, "ba" * 9], 99)
    assert found.ratio == pytest.approx(2)
    assert found.candidate.value == pytest.approx(4)
    assert found.candidate.nll == pytest.approx(math.log(4))


def test_texts_too_long_for_a_model_are_left_out():
    readers = Reader(Fixed(0.5, 0.25, 0.25), PAIRS), Reader(Fixed(0.5, 0.5), SINGLES)
    alone = same_text(*readers, [TEXTS[2]], 99)
    assert same_text(*readers, [TEXTS[2], "ab" * 50], 99) == alone
    with pytest.raises(EvaluationError, match="take a longer one"):
        same_text(*readers, ["ab" * 50], 99)
    with pytest.raises(EvaluationError, match="take a longer one"):
        same_text(*readers, ["a"], 99)


def test_windows_know_their_text():
    tokenizer = Tokenizer(models.WordLevel({"one": 0, "two": 1, "six": 2}, "one"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    windows, _ = cut(EvaluationText("t", "one two six two one six"), tokenizer, window=3)
    assert [window.text for window in windows] == ["one two six", "two one six"]
    assert perplexity(Fixed(0.5, 0.25, 0.25), windows).tokens == 4


def test_cosines_of_readings_pool_each_reading():
    class Encoder:
        outputs = ("last_hidden_state",)

        def run(self, ids, mask=None, fetch=None):
            return {"last_hidden_state": np.stack([ids, ids**2], axis=-1).astype(np.float32)}

    their = Batch(np.array([[3, 0]]), np.array([[1, 0]]))
    our = Batch(np.array([[1, 5]]), np.array([[1, 1]]))
    (found,) = cosines_of_readings(Encoder(), Encoder(), [(their, our)])
    a, b = np.array([3, 9]), np.array([3, 13])
    assert found == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert len(cosines_of_readings(Encoder(), Encoder(), [])) == 0
