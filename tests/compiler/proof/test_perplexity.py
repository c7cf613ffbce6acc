import math

import numpy as np
import pytest

from onnxforge.compiler.eval_text import EvaluationError, Window
from onnxforge.compiler.perplexity import compare, perplexity

VOCABULARY = 37


class Table:
    """A model whose logits are a fixed table by position."""

    def __init__(self, table):
        self.table = table.astype(np.float32)

    def logits(self, ids):
        return self.table[: ids.shape[1]]


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def windows(rng):
    return [Window(rng.integers(0, VOCABULARY, (1, n)), first) for n, first in ((150, 1), (65, 1), (90, 40))]


def plain(table, windows):
    """Every nll and log-softmax, the obvious way."""
    exact = table.astype(np.float32).astype(np.float64)
    logp = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    rows = [logp[w.first - 1 : w.ids.shape[1] - 1] for w in windows]
    nll = [-r[np.arange(len(r)), w.ids[0, w.first :]] for r, w in zip(rows, windows, strict=True)]
    return np.concatenate(rows), np.concatenate(nll)


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large(windows):
    found = perplexity(Table(np.zeros((200, VOCABULARY))), windows)
    assert found.value == pytest.approx(VOCABULARY, rel=1e-12)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.tokens == 149 + 64 + 50


def test_numbers_are_those_of_the_definition(rng, windows):
    base, ours = rng.normal(size=(200, VOCABULARY)) * 3, rng.normal(size=(200, VOCABULARY)) * 3
    (p, nll_p), (q, nll_q) = plain(base, windows), plain(ours, windows)
    found = compare(Table(base), Table(ours), windows)
    assert found.reference.value == pytest.approx(math.exp(nll_p.mean()), rel=1e-9)
    assert found.candidate.value == pytest.approx(math.exp(nll_q.mean()), rel=1e-9)
    assert found.ratio == pytest.approx(found.candidate.value / found.reference.value, rel=1e-9)
    kl = (np.exp(p) * (p - q)).sum(-1)
    assert found.mean_kl == pytest.approx(kl.mean(), rel=1e-9)
    assert found.max_kl == pytest.approx(kl.max(), rel=1e-9)
    assert found.top1_agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert found.candidate == perplexity(Table(ours), windows)
    first_five = np.argsort(-q, axis=-1)[:, :5]
    assert found.top5_agreement == pytest.approx((first_five == p.argmax(-1)[:, None]).any(-1).mean())
    assert found.correlation == pytest.approx(np.corrcoef(nll_p, nll_q)[0, 1])
    assert found.kl.median == pytest.approx(np.median(kl))
    assert found.kl.percentiles["99.0"] == pytest.approx(np.quantile(kl, 0.99))
    assert found.kl.error == pytest.approx(kl.std(ddof=1) / math.sqrt(len(kl)))
    change = np.exp(-nll_q) - np.exp(-nll_p)
    assert (found.probability.maximum, found.probability.minimum) == pytest.approx(
        (change.max(), change.min())
    )
    assert found.probability_rms == pytest.approx(np.sqrt((change**2).mean()))
    error = found.candidate.value * nll_q.std(ddof=1) / math.sqrt(len(nll_q))
    assert found.candidate.error == pytest.approx(error, rel=1e-9)


def test_a_model_agrees_with_itself_whatever_is_added_to_its_logits(rng, windows):
    table = rng.normal(size=(200, VOCABULARY))
    found = compare(Table(table), Table(table + 5), windows)
    assert found.ratio == pytest.approx(1, abs=1e-6)
    assert found.mean_kl == pytest.approx(0, abs=1e-9)
    assert found.top1_agreement == 1
    assert found.max_abs_logit_diff == pytest.approx(5, rel=1e-5)


def test_the_paired_error_is_smaller_than_the_two_errors(rng, windows):
    table = rng.normal(size=(200, VOCABULARY)) * 3
    found = compare(Table(table), Table(table + 0.01 * rng.normal(size=table.shape)), windows)
    assert 0 < found.ratio_error < 0.05 * found.candidate.error / found.candidate.value


def test_the_watch_hears_every_window(windows):
    heard = []
    found = perplexity(Table(np.zeros((200, VOCABULARY))), windows, heard.append)
    assert len(heard) == len(windows)
    assert heard[-1] == found.value


def test_unscored_context_does_not_count(rng):
    ids = rng.integers(0, VOCABULARY, (1, 30))
    table = rng.normal(size=(30, VOCABULARY))
    bent = table.copy()
    bent[:19] += rng.normal(size=(19, VOCABULARY))
    assert compare(Table(table), Table(bent), [Window(ids, 20)]).max_abs_logit_diff == 0
    assert compare(Table(table), Table(bent), [Window(ids, 19)]).max_abs_logit_diff > 0


def test_nan_is_an_error(windows):
    table = np.zeros((200, VOCABULARY))
    table[3, 3] = np.nan
    with pytest.raises(EvaluationError, match="NaN"):
        perplexity(Table(table), windows)


def test_other_vocabularies_and_empty_texts_are_refused(windows):
    with pytest.raises(EvaluationError, match="vocabularies differ"):
        compare(Table(np.zeros((200, 5))), Table(np.zeros((200, 6))), windows)
    with pytest.raises(EvaluationError, match="nothing to score"):
        perplexity(Table(np.zeros((200, 5))), [])
