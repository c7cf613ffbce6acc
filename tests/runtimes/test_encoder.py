import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from tiny_artifacts import HIDDEN, SHARED, write_decoder, write_encoder

from onnxforge.runtimes import ArtifactError, Encoder, RequestError, load
from onnxforge.runtimes.encoder_settings import read_encoder_settings
from onnxforge.runtimes.pooling import normalized, pool
from onnxforge.runtimes.predictions import classes

TEXTS = ["the hand", "a", "over and over the same words again", "日本語 and 🙂", "the hand", "x"]


def hidden(model, text):
    """The graph's definition in numpy: float64 [tokens, hidden]."""
    weights = {
        name: value.const_value.numpy().astype(np.float64)
        for name, value in ir.load(model.folder / "onnx" / "model.onnx").graph.initializers.items()
    }
    encoding = model.tokenizer.encode_batch([text])[0]
    x = weights["embed"][encoding.ids] + weights["segment"][encoding.type_ids]
    return np.tanh(x + x.mean(axis=0) @ weights["mix"]), weights


def pooling_files(mode, normalize=False):
    modules = [{"idx": 0, "type": "sentence_transformers.models.Transformer"}]
    if normalize:
        modules.append({"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    flags = {
        f"pooling_mode_{name}": name == mode
        for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    }
    return {"1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, **flags}, "modules.json": modules}


REFERENCE = {
    "mean_tokens": lambda h: h.mean(axis=0),
    "cls_token": lambda h: h[0],
    "max_tokens": lambda h: h.max(axis=0),
    "lasttoken": lambda h: h[-1],
}


@pytest.mark.parametrize("mode", REFERENCE)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_embeddings_pool_and_normalise_as_the_files_say(tmp_path, mode, normalize, batch_size):
    with load(write_encoder(tmp_path / "a", files=pooling_files(mode, normalize))) as model:
        assert isinstance(model, Encoder)
        found = model.encode(TEXTS, batch_size=batch_size)
        assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), HIDDEN))
        for row, text in zip(found, TEXTS, strict=True):
            expected = REFERENCE[mode](hidden(model, text)[0])
            expected = expected / np.linalg.norm(expected) if normalize else expected
            np.testing.assert_allclose(row, expected, atol=2e-6)


def test_normalisation_on_request_and_single_texts(tmp_path):
    with load(write_encoder(tmp_path / "a")) as model:
        found = model.encode(TEXTS, normalize_embeddings=True)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        assert model.encode(TEXTS[0]).shape == (HIDDEN,)
        np.testing.assert_array_equal(model.encode(TEXTS[0]), model.encode([TEXTS[0]])[0])
        assert model.encode([]).shape == (0, HIDDEN)


def test_long_texts_are_cut_with_their_special_tokens_kept(tmp_path):
    files = {"sentence_bert_config.json": {"max_seq_length": 6, "do_lower_case": True}}
    with load(write_encoder(tmp_path / "a", files=files)) as model:
        ids = model.tokenizer.encode_batch(["the same words again and again"])[0].ids
        assert len(ids) == 6
        assert ids[0] == model.tokenizer.token_id("<|bos|>")
        long, upper = model.encode(["the same words again", "THE SAME words again and again"])
        np.testing.assert_array_equal(long, upper)


def test_the_length_limit_falls_back_to_the_tokenizer_and_the_context(tmp_path):
    files = {"tokenizer_config.json": {"model_max_length": 11, "pad_token": "<pad>"}}
    with load(write_encoder(tmp_path / "a", files=files)) as model:
        assert model.settings.max_length == 11
    files = {"tokenizer_config.json": {"model_max_length": 10**30, "pad_token": "<pad>"}}
    with load(write_encoder(tmp_path / "b", files=files)) as model:
        assert model.settings.max_length == model.manifest.context_length


def test_text_classification(tmp_path):
    with load(write_encoder(tmp_path / "a", "text-classification")) as model:
        logits = model.logits(TEXTS)
        for text, row, predictions in zip(TEXTS, logits, model.predict(TEXTS), strict=True):
            h, weights = hidden(model, text)
            expected = h[0] @ weights["head"]
            np.testing.assert_allclose(row, expected, atol=1e-5)
            scores = np.exp(expected - expected.max()) / np.exp(expected - expected.max()).sum()
            order = np.argsort(-scores)
            assert [p.label for p in predictions] == [("good", "bad", "other")[i] for i in order]
            np.testing.assert_allclose([p.score for p in predictions], scores[order], atol=1e-5)
            assert (predictions[0].start, predictions[0].end) == (0, len(text))


def test_classes_that_do_not_exclude_one_another_have_their_own_sigmoid(tmp_path):
    config = {"id2label": {"0": "a", "1": "b", "2": "c"}, "problem_type": "multi_label_classification"}
    with load(write_encoder(tmp_path / "a", "text-classification", {"config.json": config})) as model:
        scores = {p.label: p.score for p in model.predict(["the hand"])[0]}
        expected = 1 / (1 + np.exp(-model.logits(["the hand"])[0]))
        np.testing.assert_allclose([scores[name] for name in "abc"], expected, rtol=1e-6)


REGRESSION = {"problem_type": "regression"}
MULTI = {"problem_type": "multi_label_classification"}
SINGLE = {"problem_type": "single_label_classification"}
ONE, THREE = {"id2label": {"0": "a"}}, {"id2label": {"0": "a", "1": "b", "2": "c"}}


def settings_of(config):
    return read_encoder_settings(Path("nowhere"), SimpleNamespace(context_length=8), config)


@pytest.mark.parametrize(
    "config",
    [
        REGRESSION | ONE,
        REGRESSION | THREE,
        MULTI | THREE,
        MULTI | ONE,
        SINGLE | THREE,
        ONE,
        THREE,
        {},
        {"num_labels": 1},
        {"num_labels": 3},
    ],
    ids=str,
)
def test_scores_are_those_of_transformers_pipeline(config):
    import torch
    from transformers import BertConfig
    from transformers.pipelines import TextClassificationPipeline

    held = BertConfig(**config)
    logits = np.array([1.5, -0.25, 3.0], np.float32)[: held.num_labels]
    pipeline = SimpleNamespace(model=SimpleNamespace(config=held))
    output = {"logits": torch.from_numpy(logits)[None]}
    theirs = TextClassificationPipeline.postprocess(pipeline, output, top_k=None, _legacy=False)
    ours = classes(logits, "text", settings_of(config))
    assert [p.label for p in ours] == [found["label"] for found in theirs]
    np.testing.assert_allclose([p.score for p in ours], [found["score"] for found in theirs], rtol=1e-6)


def test_without_labels_the_config_names_the_activation():
    unlabelled = {"id2label": {}}
    assert settings_of(unlabelled).activation == "none"
    assert settings_of(unlabelled | {"function_to_apply": "sigmoid"}).activation == "sigmoid"


def test_a_regression_head_answers_its_number(tmp_path):
    config = {"id2label": {"0": "a", "1": "b", "2": "c"}, "problem_type": "regression"}
    with load(write_encoder(tmp_path / "a", "text-classification", {"config.json": config})) as model:
        scores = {p.label: p.score for p in model.predict(["the hand"])[0]}
        np.testing.assert_array_equal([scores[name] for name in "abc"], model.logits(["the hand"])[0])


def test_token_classification_labels_each_token_of_the_text(tmp_path):
    with load(write_encoder(tmp_path / "a", "token-classification")) as model:
        for text, rows, predictions in zip(TEXTS, model.logits(TEXTS), model.predict(TEXTS), strict=True):
            h, weights = hidden(model, text)
            np.testing.assert_allclose(rows, h @ weights["head"], atol=1e-5)
            assert len(predictions) == len(rows) - 1  # the special token in front has no label
            assert [p.label for p in predictions] == [
                ("good", "bad", "other")[i] for i in rows[1:].argmax(axis=1)
            ]
            assert (predictions[0].start, predictions[-1].end) == (0, len(text))


def test_fill_mask_gives_five_words_for_each_gap(tmp_path):
    with load(write_encoder(tmp_path / "a", "fill-mask")) as model:
        text = "the <mask> and <mask>"
        (predictions,) = model.predict([text])
        assert len(predictions) == 10
        assert {text[p.start : p.end] for p in predictions} == {"<mask>"}
        place = model.tokenizer.encode_batch([text])[0].tokens.index("<mask>")
        best = int(model.logits([text])[0][place].argmax())
        assert predictions[0].label == model.tokenizer.decode([best]).strip()
        assert all(a.score >= b.score for a, b in itertools.pairwise(predictions[:5]))
        with pytest.raises(RequestError, match="no mask token"):
            model.predict(["no gap here"])


def test_the_wrong_question_is_refused_with_the_right_one(tmp_path):
    with load(write_encoder(tmp_path / "a")) as model:
        with pytest.raises(RequestError, match="use encode"):
            model.logits(["a"])
        with pytest.raises(RequestError, match="use encode"):
            model.predict(["a"])
        with pytest.raises(RequestError, match="list of texts"):
            model.encode([1])
        with pytest.raises(RequestError, match="batch_size is 0"):
            model.encode(["a"], batch_size=0)
    with pytest.raises(RequestError, match="closed"):
        model.encode(["a"])
    with load(write_encoder(tmp_path / "b", "text-classification")) as model:
        with pytest.raises(RequestError, match="no embeddings"):
            model.encode(["a"])
        with pytest.raises(RequestError, match="list of texts"):
            model.predict("a")


def test_unknown_pooling_and_broken_labels_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="weightedmean"):
        load(write_encoder(tmp_path / "a", files={"1_Pooling/config.json": {"pooling_mode": "weightedmean"}}))
    with pytest.raises(ArtifactError, match="id2label"):
        load(write_encoder(tmp_path / "b", files={"config.json": {"id2label": {"x": "y"}}}))


def test_a_decoder_graph_under_an_encoder_task_is_refused(tmp_path):
    from tiny_artifacts import seal

    folder = write_decoder(tmp_path / "a", SHARED)
    seal(folder, task="feature-extraction")
    with pytest.raises(ArtifactError, match="not an encoder graph"):
        load(folder)


def test_pooling_ignores_padding_wherever_it_is():
    rng = np.random.default_rng(0)
    states = rng.standard_normal((1, 5, 3)).astype(np.float32)
    right, left = np.array([[1, 1, 1, 0, 0]]), np.array([[0, 0, 1, 1, 1]])
    assert np.array_equal(pool(states, right, "lasttoken"), states[:, 2])
    assert np.array_equal(pool(states, left, "lasttoken"), states[:, 4])
    assert np.array_equal(pool(states, right, "cls"), states[:, 0])
    assert np.array_equal(pool(states, left, "max"), states[:, 2:].max(axis=1))
    np.testing.assert_allclose(pool(states, left, "mean"), states[:, 2:].mean(axis=1), atol=1e-6)
    assert np.array_equal(normalized(np.zeros((1, 3), np.float32)), np.zeros((1, 3)))
