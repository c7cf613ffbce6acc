import json
import shutil

import numpy as np
import pytest
from tiny_artifacts import CONTEXT, FORMS, PLAIN, SHARED, VOCABULARY, Form, seal, write_decoder
from whole_run import whole

from onnxforge.runtimes import ArtifactError, ContextOverflow, NumericalError, RequestError, load

forms = pytest.mark.parametrize("form", FORMS, ids=str)
PROMPTS = ["the hand", "a", "over and over the same words again", "日本語 and 🙂"]
NO_EOS = {"eos_token_id": []}


def greedy(model, prompt, count):
    """The definition of greedy decoding: the whole text again for every token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(whole(model, np.array(ids))[-1].argmax()))
    return tuple(ids[len(prompt) :])


@forms
def test_greedy_tokens_are_those_of_running_the_whole_text_each_time(decoders_by_form, form):
    model = decoders_by_form[form]
    ids = model.prompt_tokens(PROMPTS[0])
    result = model.generate(ids, max_new_tokens=25, **NO_EOS)
    assert result.token_ids == greedy(model, ids, 25)
    assert result.finish_reason == "length"


@forms
def test_a_ragged_batch_equals_its_single_requests(decoders_by_form, form):
    model = decoders_by_form[form]
    batch = model.generate(PROMPTS, max_new_tokens=30)
    assert [(r.text, r.token_ids, r.finish_reason) for r in batch] == [
        (r.text, r.token_ids, r.finish_reason)
        for r in (model.generate(p, max_new_tokens=30) for p in PROMPTS)
    ]


@forms
def test_rows_that_finish_early_leave_the_others_alone(decoders_by_form, form):
    model = decoders_by_form[form]
    singles = [model.generate(p, max_new_tokens=40, **NO_EOS).token_ids for p in PROMPTS]
    eos = [singles[0][5], singles[2][11], singles[3][17]]
    batch = model.generate(PROMPTS, max_new_tokens=40, eos_token_id=eos)
    assert len({len(r.token_ids) for r in batch}) > 2
    for result, single in zip(batch, singles, strict=True):
        ends = [at for at, token in enumerate(single) if token in eos]
        expected = single[: ends[0] + 1] if ends else single
        assert result.token_ids == expected
        assert result.finish_reason == ("stop" if ends else "length")


def test_the_end_of_text_token_is_an_id_of_the_answer_but_not_its_text(decoder):
    free = decoder.generate("the", max_new_tokens=8, **NO_EOS)
    result = decoder.generate("the", max_new_tokens=8, eos_token_id=free.token_ids[3])
    assert result.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[3]) + 1]
    assert result.finish_reason == "stop"
    assert result.text == decoder.tokenizer.decode(result.token_ids[:-1])


def test_text_gets_special_tokens_and_a_chat_gets_those_of_its_template(decoder):
    bos = decoder.tokenizer.token_id("<|bos|>")
    assert decoder.prompt_tokens("the") == [bos, *decoder.tokenizer.encode("the", add_special_tokens=False)]
    chat = [{"role": "user", "content": "the"}]
    ids = decoder.prompt_tokens(chat)
    assert ids.count(bos) == 1
    text = "<|bos|><|user|>the<|answer|>"
    assert ids == decoder.tokenizer.encode(text, add_special_tokens=False)
    expected = decoder.generate(ids, max_new_tokens=6)
    assert decoder.chat(chat, max_new_tokens=6).token_ids == expected.token_ids
    assert decoder.generate(chat, max_new_tokens=6).token_ids == expected.token_ids
    assert decoder.generate([chat, chat], max_new_tokens=6)[1].token_ids == expected.token_ids


def test_ids_may_be_numpy_and_batches_of_ids_too(decoder):
    ids = decoder.prompt_tokens("the hand")
    expected = decoder.generate(ids, max_new_tokens=5).token_ids
    assert decoder.generate(np.array(ids), max_new_tokens=5).token_ids == expected
    assert [r.token_ids for r in decoder.generate(np.array([ids, ids]), max_new_tokens=5)] == [expected] * 2
    assert decoder.generate([ids, ids[:2]], max_new_tokens=5)[0].token_ids == expected


@pytest.mark.parametrize("form", [SHARED, PLAIN], ids=str)
@pytest.mark.parametrize("prompt", [1, 2, CONTEXT - 2, CONTEXT - 1])
def test_prompt_and_answer_may_fill_the_context_exactly(decoders_by_form, form, prompt):
    model = decoders_by_form[form]
    result = model.generate([7] * prompt, max_new_tokens=CONTEXT - prompt, **NO_EOS)
    assert len(result.token_ids) == CONTEXT - prompt


@pytest.mark.parametrize(
    ("prompt", "new"), [(1, CONTEXT), (CONTEXT - 1, 2), (CONTEXT, 1), (CONTEXT + 1, 1), (10 * CONTEXT, 1)]
)
def test_one_token_more_is_refused_before_anything_runs(decoder, monkeypatch, prompt, new):
    monkeypatch.setattr("onnxforge.runtimes.decode_loop.new_state", lambda *_: pytest.fail("it ran"))
    with pytest.raises(
        ContextOverflow, match=f"{prompt} prompt tokens and {new} new ones .* context of {CONTEXT}"
    ):
        decoder.generate([7] * prompt, max_new_tokens=new)


def test_without_a_limit_the_answer_takes_what_is_left_of_the_context(decoder):
    assert len(decoder.generate([7] * 100, **NO_EOS).token_ids) == CONTEXT - 100
    with pytest.raises(ContextOverflow, match=f"{CONTEXT} prompt tokens and 1 new"):
        decoder.generate([7] * CONTEXT, **NO_EOS)


def test_truncation_on_request_drops_the_oldest_tokens(decoder):
    ids = [int(token) for token in np.random.default_rng(0).integers(6, VOCABULARY, 3 * CONTEXT)]
    cut = decoder.generate(ids, max_new_tokens=20, truncate="left", **NO_EOS)
    assert cut.token_ids == decoder.generate(ids[-(CONTEXT - 20) :], max_new_tokens=20, **NO_EOS).token_ids
    assert cut.stats.prompt_tokens == CONTEXT - 20
    assert decoder.generate(ids[:9], max_new_tokens=4, truncate="left").stats.prompt_tokens == 9
    assert decoder.generate(ids, truncate="left", **NO_EOS).stats.prompt_tokens == CONTEXT // 2
    with pytest.raises(ContextOverflow):
        decoder.generate(ids, max_new_tokens=CONTEXT, truncate="left")
    with pytest.raises(RequestError, match="truncate is 'right'"):
        decoder.generate(ids, truncate="right")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"do_sample": 1}, "do_sample is 1"),
        ({"eos_token_id": [-1]}, "eos_token_id is -1"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"stop": [""]}, "non-empty strings"),
        ({"stop": 3}, "stop is 3"),
        ({"deadline": 0}, "deadline is 0"),
        ({"deadline": -1.0}, "deadline is -1"),
    ],
)
def test_options_out_of_range_are_refused(decoder, options, message):
    with pytest.raises(RequestError, match=message):
        decoder.generate("the", **options)
    with pytest.raises(RequestError, match=message):
        decoder.stream("the", **options)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty"),
        (np.zeros(0, np.int64), "empty"),
        ([[]], "empty"),
        ([-1], "Token id -1"),
        ([VOCABULARY], f"from 0 to {VOCABULARY - 1}"),
        ([True], "Token id True"),
        ([1.5], "Token id 1.5"),
        (7, "not int"),
        ([{"role": "user", "content": "a"}, 5], "Token id"),
    ],
)
def test_prompts_that_are_none_are_refused(decoder, prompt, message):
    with pytest.raises(RequestError, match=message):
        decoder.generate(prompt, max_new_tokens=1)


def test_chat_and_stream_take_one_prompt(decoder):
    with pytest.raises(RequestError, match="list of messages"):
        decoder.chat("hello")
    with pytest.raises(RequestError, match="one prompt"):
        decoder.stream(["a", "b"])


def test_an_option_that_does_not_exist_is_refused(decoder):
    with pytest.raises(RequestError, match="max_length"):
        decoder.generate("the", max_length=5)


def test_defaults_come_from_generation_config(tmp_path):
    config = {"do_sample": True, "temperature": 0.6, "top_k": 7, "top_p": 0.9, "repetition_penalty": 1.2}
    with load(write_decoder(tmp_path / "a", generation={**config, "max_new_tokens": 9, "x": None})) as model:
        defaults = model.defaults
        assert (defaults.do_sample, defaults.temperature, defaults.top_k) == (True, 0.6, 7)
        assert (defaults.top_p, defaults.repetition_penalty, defaults.eos_token_id) == (0.9, 1.2, (1,))
        texts = {model.generate("the", seed=seed, **NO_EOS).token_ids for seed in range(5)}
        assert len(texts) == 5
        assert {len(ids) for ids in texts} == {9}
        assert len({model.generate("the", do_sample=False).token_ids for _ in range(3)}) == 1


def test_without_generation_config_the_defaults_are_those_of_transformers(tmp_path):
    from transformers import GenerationConfig

    folder = write_decoder(tmp_path / "a")
    (folder / "generation_config.json").unlink()
    seal(folder)
    reference = GenerationConfig()._get_default_generation_params()
    with load(folder) as model:
        for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"):
            assert getattr(model.defaults, name) == reference[name]
        assert model.defaults.eos_token_id == (1,)


def test_a_generation_config_out_of_range_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"generation_config\.json: temperature is -1"):
        load(write_decoder(tmp_path / "a", generation={"do_sample": True, "temperature": -1}))


def test_nan_logits_are_an_error(tmp_path):
    with load(write_decoder(tmp_path / "a", Form(broken=True))) as model:
        for options in ({}, {"do_sample": True}, {"repetition_penalty": 1.5}):
            with pytest.raises(NumericalError, match="logits hold nan"):
                model.generate("the", max_new_tokens=2, **options)


def test_a_model_without_template_says_so(tmp_path):
    folder = write_decoder(tmp_path / "a")
    (folder / "chat_template.jinja").unlink()
    seal(folder)
    with load(folder) as model, pytest.raises(RequestError, match="no chat template"):
        model.chat([{"role": "user", "content": "hi"}])


def test_stats_count_tokens_and_time(decoder):
    result = decoder.generate([7] * 10, max_new_tokens=5, **NO_EOS)
    stats = result.stats
    assert (stats.prompt_tokens, stats.new_tokens) == (10, 5)
    assert stats.prefill_tokens_per_s == pytest.approx(10 / stats.time_to_first_token_s)
    assert stats.decode_tokens_per_s > 0
    assert decoder.generate([7], max_new_tokens=1).stats.decode_tokens_per_s == 0


def test_a_closed_model_refuses_requests(tmp_path):
    with load(write_decoder(tmp_path / "a")) as model:
        pass
    with pytest.raises(RequestError, match="closed"):
        model.generate("the")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"provider": "cuda"}, "needs CUDAExecutionProvider, which does not work here"),
        ({"provider": "NopeExecutionProvider"}, "needs NopeExecutionProvider"),
        ({"threads": 0}, "threads is 0"),
        ({"verify": "maybe"}, "verify is 'maybe'"),
    ],
)
def test_load_refuses_what_this_machine_cannot_do(tmp_path, arguments, message):
    with pytest.raises(RequestError, match=message):
        load(write_decoder(tmp_path / "a"), **arguments)


def test_a_graph_that_is_no_decoder_is_refused(tmp_path):
    folder = write_decoder(tmp_path / "a")
    (folder / "onnx" / "model.onnx").write_bytes(b"not a graph")
    seal(folder)
    with pytest.raises(ArtifactError, match="cannot load it"):
        load(folder)
    shutil.rmtree(folder)
    from tiny_artifacts import write_encoder

    write_encoder(folder)
    seal(folder)
    with pytest.raises(ArtifactError, match="unknown inputs"):
        load(folder)


def test_session_entries_of_the_manifest_reach_the_session(tmp_path):
    folder = write_decoder(tmp_path / "a")
    seal(folder, session={"session.intra_op.allow_spinning": "0"})
    with load(folder) as model:
        options = model.graph.session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_tokenizer_configuration_errors_are_artifact_errors(tmp_path):
    folder = write_decoder(tmp_path / "a")
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    seal(folder)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: not a readable tokenizer"):
        load(folder)
