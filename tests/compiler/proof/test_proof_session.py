import numpy as np
import pytest
from tokenizers import Tokenizer

from onnxforge.compiler.eval_text import EvaluationError, cut, evaluation_text
from onnxforge.compiler.perplexity import compare
from onnxforge.compiler.proof_layers import error_by_layer
from onnxforge.compiler.proof_session import GraphSession

IDS = np.arange(2, 26, dtype=np.int64)[None, :]


def test_a_decoder_answers_logits_and_presents(make_artifact):
    session = GraphSession(make_artifact("a"))
    assert session.is_decoder
    assert session.logits(IDS).shape == (24, 200)
    assert session.run(IDS, fetch=["present.1.value"])["present.1.value"].shape == (1, 2, 24, 4)


def test_padding_on_the_right_changes_nothing_before_it(make_artifact):
    session = GraphSession(make_artifact("a"))
    mask = np.ones_like(IDS)
    mask[0, 20:] = 0
    padded = session.run(IDS, mask, ["logits"])["logits"][0]
    np.testing.assert_allclose(padded[:20], session.logits(IDS[:, :20]), atol=1e-5)


def test_a_folder_without_tokenizer_says_so(make_artifact):
    folder = make_artifact("a")
    (folder / "tokenizer.json").unlink()
    session = GraphSession(folder)
    assert not session.has_tokenizer
    with pytest.raises(EvaluationError, match=r"no tokenizer\.json"):
        session.tokenizer()


def test_a_tokenizer_that_cuts_and_pads_is_asked_for_the_whole_text(make_artifact):
    folder = make_artifact("a")
    path = str(folder / "tokenizer.json")
    saved = Tokenizer.from_file(path)
    saved.no_truncation()
    text = evaluation_text().text[:2000]
    whole = saved.encode(text).ids
    saved.enable_truncation(8)
    saved.enable_padding(length=4096)
    saved.save(path)
    assert GraphSession(folder).tokenizer().encode(text).ids == whole


def test_noise_shows_in_perplexity_and_divergence(make_artifact):
    exact = GraphSession(make_artifact("exact"))
    windows, _ = cut(evaluation_text(), exact.tokenizer(), window=64, limit=4)
    small, large = (compare(exact, GraphSession(make_artifact(f"n{n}", n)), windows) for n in (0.001, 0.05))
    assert 0 < small.mean_kl < large.mean_kl / 100
    assert abs(small.ratio - 1) < 0.01
    assert large.top1_agreement < small.top1_agreement <= 1


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_drift_has_one_number_per_layer_and_grows_with_noise(make_artifact, kind):
    exact = GraphSession(make_artifact("exact", kind=kind))
    same = error_by_layer(exact, exact, IDS)
    assert [(e.layer, e.sqnr_db, e.max_relative) for e in same] == [(0, 160.0, 0.0), (1, 160.0, 0.0)]
    small = error_by_layer(exact, GraphSession(make_artifact("s", 0.001, kind=kind)), IDS)
    large = error_by_layer(exact, GraphSession(make_artifact("l", 0.01, kind=kind)), IDS)
    assert all(s.sqnr_db - b.sqnr_db + 10 > 20 and s.sqnr_db > 35 for s, b in zip(small, large, strict=True))
    assert 15 < small[0].sqnr_db - large[0].sqnr_db < 25, "ten times the noise is 20 dB"


def test_drift_of_an_encoder_leaves_no_file_behind(make_artifact):
    folder = make_artifact("exact", kind="encoder")
    before = sorted(folder.rglob("*"))
    error_by_layer(GraphSession(folder), GraphSession(folder), IDS)
    assert sorted(folder.rglob("*")) == before
