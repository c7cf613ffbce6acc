import numpy as np
import pytest

from onnxforge.compiler.eval_text import EvaluationError, sentences
from onnxforge.compiler.parity import Batch, batches, compare_encoders
from onnxforge.compiler.proof_session import GraphSession


class Fake:
    """An encoder that answers a fixed array under a fixed name."""

    def __init__(self, name, value):
        self.outputs = (name,)
        self.value = value.astype(np.float32)

    def run(self, ids, mask=None, fetch=None):
        return {self.outputs[0]: self.value}


@pytest.fixture
def batch():
    return Batch(np.ones((2, 3), np.int64), np.array([[1, 1, 1], [1, 0, 0]]))


def test_padding_is_never_looked_at(batch):
    value = np.random.default_rng(0).normal(size=(2, 3, 4))
    other = value.copy()
    other[1, 1:] = 99
    found = compare_encoders(Fake("last_hidden_state", value), Fake("last_hidden_state", other), [batch])
    assert found.max_abs == 0
    assert found.min_cosine == pytest.approx(1, abs=1e-12)
    assert found.label_agreement is None


def test_cosine_is_of_masked_means(batch):
    value = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    other = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    found = compare_encoders(Fake("last_hidden_state", value), Fake("last_hidden_state", other), [batch])
    pairs = [(value[0].mean(0), other[0].mean(0)), (value[1, 0], other[1, 0])]
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs]
    assert found.min_cosine == pytest.approx(min(cosines), rel=1e-5)
    assert found.mean_cosine == pytest.approx(np.mean(cosines), rel=1e-5)


def test_labels_per_sentence_and_per_token(batch):
    sentence = np.array([[2.0, 1.0], [2.0, 1.0]])
    flipped = np.array([[2.0, 1.0], [1.0, 2.0]])
    assert compare_encoders(Fake("logits", sentence), Fake("logits", flipped), [batch]).label_agreement == 0.5
    token = np.zeros((2, 3, 2))
    other = token.copy()
    other[0, 0, 1] = other[1, 2, 1] = 1  # the second one is padding
    assert compare_encoders(Fake("logits", token), Fake("logits", other), [batch]).label_agreement == 0.75


def test_nan_other_outputs_other_shapes_and_nothing_are_refused(batch):
    good = Fake("logits", np.zeros((2, 3)))
    for bad, message in (
        (Fake("logits", np.full((2, 3), np.nan)), "NaN"),
        (Fake("logits", np.zeros((2, 4))), "shapes"),
        (Fake("pooled", np.zeros((2, 3))), "share neither"),
    ):
        with pytest.raises(EvaluationError, match=message):
            compare_encoders(good, bad, [batch])
    with pytest.raises(EvaluationError, match="nothing to compare"):
        compare_encoders(good, good, [])


def test_batches_are_right_padded_and_truncated(words):
    work = batches(["the", "the value of the object is the value", *["a"] * 8], words, longest=5)
    assert [b.ids.shape for b in work] == [(8, 5), (2, 1)]
    assert work[0].mask[0].tolist() == [1, 0, 0, 0, 0]
    assert work[0].mask[1].tolist() == [1, 1, 1, 1, 1]


def test_real_graphs_over_ragged_batches(make_artifact, words):
    exact, noisy = make_artifact("exact", kind="encoder"), make_artifact("noisy", 0.01, kind="encoder")
    work = batches(sentences(20), words, 64)
    same = compare_encoders(GraphSession(exact), GraphSession(exact), work)
    assert (same.max_abs, same.sentences) == (0, 20)
    found = compare_encoders(GraphSession(exact), GraphSession(noisy), work)
    assert 0.9 < found.min_cosine < found.mean_cosine < 1
    assert found.max_abs > 1e-3
