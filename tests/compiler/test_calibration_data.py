"""From calibration data to the token windows that a graph is run on, and what is written down of them."""

import hashlib
import json
import tracemalloc
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from onnxforge.compiler.calibration_data import attach, calibration_batches, data_of, uses_of
from onnxforge.compiler.calibration_overlap import Shingles
from onnxforge.compiler.calibration_use import use_summary
from onnxforge.passes.base import PassRefused

WORDS = {"<s>": 0, "</s>": 1, "user": 2, "assistant": 3} | {f"w{i}": i for i in range(4, 32)}
TEMPLATE = "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
CHAT = [{"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": "w7"}]


def tokenizer(around=False):
    made = Tokenizer(models.WordLevel(WORDS, unk_token="w31"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<s>", "</s>"])
    form = "<s> $A </s>" if around else "<s> $A"
    made.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=[("<s>", 0), ("</s>", 1)][: 1 + around]
    )
    return made.to_str().encode()


@pytest.fixture
def decoder(parts):
    """A decoder's graph, and its source with a tokenizer and a chat template."""
    sidecars = {
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": b'{"bos_token": "<s>"}',
        "chat_template.jinja": TEMPLATE.encode(),
    }
    source = replace(parts.open_model("tiny", None), sidecars=sidecars)
    return parts.export_model(source, None), source


@pytest.fixture
def encoder(decoder):
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (int64[b, s] input_ids, int64[b, s] attention_mask) => (float[b, s] y) {
          y = Cast <to = 1> (input_ids)
        }"""
    )
    return model, replace(decoder[1], sidecars={"tokenizer.json": tokenizer(around=True)})


def work(pair, named, samples=4, tokens=10, **options):
    model, source = pair
    attach(model, source, None if named is None else str(named))
    return list(calibration_batches(model, samples, tokens, **options))


def rows(found):
    return [
        ids[mask.astype(bool)].tolist()
        for batch in found
        for ids, mask in zip(batch.ids, batch.mask, strict=True)
    ]


def write(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def words(count, first=4):
    return " ".join(f"w{4 + (first + i) % 28}" for i in range(count))


def test_a_decoder_gets_evenly_spaced_windows_of_a_text(decoder, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(words(90), encoding="utf-8")
    found = work(decoder, path, samples=5)
    assert [batch.ids.shape for batch in found] == [(1, 10)] * 5
    assert all(batch.ids[0, 0] == 0 for batch in found)  # the tokenizer's <s>
    assert found[1].ids[0, 1] == 4 + (4 + 18) % 28  # ten windows of nine words each: every other one


def test_a_short_text_is_used_whole_and_the_report_says_so(decoder, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(words(6), encoding="utf-8")
    assert rows(work(decoder, path, used_by="calibrate")) == [[0, *(8 + i for i in range(6))]]
    (use,) = uses_of(decoder[0])
    assert use.is_short
    assert "1 samples, 7 tokens of 40 asked for" in use.sentence()


def test_records_of_every_form_reach_a_decoder(decoder, tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"text": "w4 w5"},
        {"messages": CHAT},
        {"input_ids": [9, 8]},
        {"text": words(50)},
    )
    found = rows(work(decoder, path, samples=100))
    assert found[:3] == [[0, 4, 5], [0, 2, 5, 6, 3, 7], [9, 8]]
    assert len(found[3]) == 10


def test_records_reach_an_encoder_padded_and_with_its_special_tokens(encoder, tmp_path):
    path = write(tmp_path / "a.jsonl", *({"text": words(n)} for n in range(1, 12)))
    found = work(encoder, path, samples=100)
    assert [len(batch.ids) for batch in found] == [8, 3]
    texts = rows(found)
    assert texts[0] == [0, 8, 1]
    assert len(texts[-1]) == 10
    assert texts[-1][-1] == 1  # cut, and the end put on all the same


def test_an_encoder_gets_sentences_for_as_many_tokens(encoder, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(". ".join(f"W{n} is the number of line {n}" for n in range(300)) + ".", encoding="utf-8")
    found = rows(work(encoder, path, samples=8, tokens=32))
    assert 150 < sum(map(len, found)) < 500
    assert all(row[0] == 0 and row[-1] == 1 for row in found)
    path.write_text("\n".join(["kein satz", "noch keiner", ""]), encoding="utf-8")
    assert len(rows(work(encoder, path))) == 2


def test_the_default_is_the_text_that_evaluation_never_sees(decoder):
    assert len(work(decoder, None)) == 4
    assert uses_of(decoder[0])[0].source.startswith("pydoc_data.topics, odd half")


def test_a_model_without_a_tokenizer_gets_seeded_ids(decoder):
    bare = decoder[0], replace(decoder[1], sidecars={})
    first, again, other = (rows(work(bare, None, seed=seed)) for seed in (3, 3, 4))
    assert np.shape(first) == (4, 10)
    assert first == again != other


def test_the_model_writes_its_own_text(decoder):
    first, again, other = (rows(work(decoder, "self", samples=10, seed=seed)) for seed in (0, 0, 1))
    assert np.shape(first) == (10, 10)
    assert first == again != other
    array = np.array(first)
    assert (array[:, 0] == 0).all()  # what the tokenizer puts in front
    assert not np.isin(array[:, 1], [0, 1]).any()  # an ordinary token
    assert not np.isin(array[:, 1:], [2, 3]).any()  # the configuration's ends of text
    assert len({tuple(row[6:]) for row in first}) > 5  # sampled, not all the same


def test_its_first_words_are_the_likeliest_ones(decoder):
    found = np.array(work(decoder, "self", samples=3, tokens=8)[0].ids)
    weights = {v.name: v.const_value.numpy() for v in decoder[0].graph.initializers.values() if v.const_value}
    for place in range(1, 5):
        logits = weights["embed"][found[0, place]] @ weights["head"]
        logits[[2, 3]] = -np.inf
        assert found[0, place + 1] == logits.argmax()


def test_every_step_of_a_compile_sees_the_same_sequences(decoder):
    model, source = decoder
    attach(model, source, "self")
    before = rows(calibration_batches(model, 2, 12, used_by="calibrate"))
    weight = model.graph.initializers["head"]
    weight.const_value = ir.tensor(-weight.const_value.numpy(), name="head")
    assert rows(calibration_batches(model, 2, 12, used_by="calibrate{method=mse}")) == before
    (use,) = uses_of(model)
    assert use.steps == ("calibrate", "calibrate{method=mse}")


def test_an_encoder_cannot(encoder):
    with pytest.raises(PassRefused, match="this one is an encoder"):
        work(encoder, "self")


def test_what_was_used_is_written_down(decoder, tmp_path):
    path = write(tmp_path / "a.jsonl", {"input_ids": [9, 8, 7]}, {"input_ids": [6]})
    model, source = decoder
    attach(model, source, str(path))
    again = calibration_batches(model, 4, 10, seed=5, used_by="calibrate{seed=5}")
    assert rows(again) == rows(again) == [[9, 8, 7], [6]]
    digest = hashlib.sha256(np.array([9, 8, 7, 6], "<i8").tobytes()).hexdigest()
    assert use_summary(uses_of(model)) == {
        "calibration_source": "a.jsonl",
        "calibration_samples": 2,
        "calibration_tokens": 4,
        "calibration_ids_sha256": digest,
        "calibration_seed": 5,
        "calibration_steps": "calibrate{seed=5}",
    }
    assert use_summary(()) == {}


def test_too_little_to_run_on_is_refused(decoder, tmp_path):
    (tmp_path / "a.txt").write_text("w5", encoding="utf-8")
    with pytest.raises(PassRefused, match=r"a\.txt has 1 tokens"):
        work(decoder, tmp_path / "a.txt")


def test_a_large_file_is_streamed(decoder, tmp_path):
    """Forty megabytes of records: no more than a few of them in memory."""
    line = json.dumps({"text": words(1500)}) + "\n"
    path = tmp_path / "a.jsonl"
    path.write_text(line * (40_000_000 // len(line)), encoding="utf-8")
    model, source = decoder
    attach(model, source, str(path))
    tracemalloc.start()
    found = rows(calibration_batches(model, 8, 32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [len(row) for row in found] == [32] * 8
    assert peak < 4_000_000


def test_what_two_texts_share_is_counted_in_runs():
    ids = np.random.default_rng(0).integers(0, 50_000, 1200)
    seen = Shingles()
    seen.add(ids[:600])
    of_seen, of_text = seen.shared(ids)
    assert of_seen == 1.0
    assert of_text == pytest.approx(0.5, abs=0.02)
    assert seen.shared(ids[::-1]) == (0.0, 0.0)
    assert seen.shared(ids[:3]) == (0.0, 0.0)
    assert Shingles().shared(ids) == (0.0, 0.0)
    assert data_of(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)) is None
