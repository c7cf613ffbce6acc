"""Drafting changes no token: real kernels, tiny decoders, every kind of draft."""

import json
import threading
import time

import numpy as np
import pytest
from fake_models import Scripted, TableState, Whole, speculate
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_artifacts import (
    CONTEXT,
    PLAIN,
    SHARED,
    SHARED_POSITIONS,
    VOCABULARY,
    Form,
    seal,
    write_decoder,
    write_encoder,
)

from onnxforge.runtimes import (
    CancelToken,
    ContextOverflow,
    Decoder,
    GenerationOptions,
    NumericalError,
    RequestError,
    Speculation,
    drafting,
    load,
)

NO_EOS = {"eos_token_id": []}
FORMS = (SHARED, SHARED_POSITIONS, Form(keeps_logits=False), Form(int8=True))
PROMPTS = ["the hand and the hand and", "a", "over and over the same words", [7], [7] * 30]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = tmp_path_factory.mktemp("speculative")
    return {form: load(write_decoder(base / str(i), form), threads=1) for i, form in enumerate(FORMS)}


@pytest.fixture(scope="module")
def assistant(tmp_path_factory):
    """Another model with the same tokenizer."""
    return load(write_decoder(tmp_path_factory.mktemp("assistant") / "a", seed=1), threads=1)


def reference(model, prompt, count, **options):
    return model.generate(prompt, max_new_tokens=count, min_rows=2, max_draft_tokens=0, **options)


def same(got, expected):
    assert (got.token_ids, got.text, got.finish_reason) == (
        expected.token_ids,
        expected.text,
        expected.finish_reason,
    )


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"repetition_penalty": 1.3}, {"do_sample": True, "seed": 4}], ids=str
)
def test_ngram_drafts_change_no_token(models, form, options):
    model = models[form]
    for prompt in PROMPTS:
        expected = reference(model, prompt, 60, **options)
        for count in (1, 4, 31):
            same(model.generate(prompt, max_new_tokens=60, max_draft_tokens=count, **options), expected)
        assert expected.stats.speculative is None
        streamed = model.stream(prompt, max_new_tokens=60, max_draft_tokens=6, **options)
        assert "".join(streamed) == expected.text
        same(streamed.result, expected)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_draft_model_changes_no_greedy_token(models, assistant, form):
    model = models[form]
    for prompt in PROMPTS:
        for penalty in (1.0, 1.3):
            expected = reference(model, prompt, 50, repetition_penalty=penalty)
            got = model.generate(
                prompt, max_new_tokens=50, assistant_model=assistant, repetition_penalty=penalty
            )
            same(got, expected)
            assert got.stats.speculative.draft_forward_passes > 0
            itself = model.generate(prompt, max_new_tokens=50, assistant_model=model, max_draft_tokens=4)
            same(itself, reference(model, prompt, 50))


def test_a_model_that_drafts_for_itself_is_right_nearly_always(models):
    """It reads one row at a time, so its last bits are others: only those may tell them apart."""
    model, ids = models[SHARED], models[SHARED].prompt_tokens("the hand")
    options = GenerationOptions()
    sampler = drafting.Sampler(options, (), drafts=True)
    fill = drafting.ModelDrafter(model.new_state(), CONTEXT, VOCABULARY, sampler, ())
    loop, answer = speculate(model.new_state(min_rows=2), ids, options, fill, 100, 4, Whole(4))
    for _ in loop.steps():
        pass
    assert tuple(answer.tokens) == reference(model, ids, 100, **NO_EOS).token_ids
    stats = loop.stats(0).speculative
    assert stats.acceptance_rate > 0.95
    assert stats.mean_emitted_tokens_per_round > 4
    assert stats.draft_forward_passes == stats.draft_tokens_proposed


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_drafts_of_any_length_give_the_plain_tokens(models, data):
    """Drafts that are right for a while, of a length of their own every step."""
    form = data.draw(st.sampled_from(FORMS))
    model, prompt = models[form], data.draw(st.lists(st.integers(6, VOCABULARY - 1), min_size=1, max_size=40))
    count = data.draw(st.integers(1, 40))
    expected = reference(model, prompt, count, **NO_EOS)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))

    def proposal(text, wanted):
        right = list(expected.token_ids[len(text) - len(prompt) :][: rng.integers(0, wanted + 1)])
        wrong = rng.integers(0, VOCABULARY, wanted)
        return (right + wrong.tolist())[: rng.integers(1, wanted + 1)]

    most = data.draw(st.integers(1, 31))
    options = GenerationOptions()
    loop, answer = speculate(
        model.new_state(min_rows=2), prompt, options, Scripted(proposal), count, most, Whole(most)
    )
    for _ in loop.steps():
        pass
    assert tuple(answer.tokens) == expected.token_ids
    stats = loop.stats(0).speculative
    assert stats.draft_tokens_accepted <= stats.draft_tokens_evaluated <= stats.draft_tokens_proposed
    assert stats.rounds + stats.draft_tokens_accepted >= count - 1


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_even_steps_agree_bit_for_bit(models, form):
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 80)
    state = models[form].new_state(min_rows=2)
    state.prompt([ids[:40]])
    alone = [state.step(token.reshape(1, 1))[0, 0].copy() for token in ids[40:72]]
    for rows in (*range(2, 10), 16, 32):
        state.rewind(32)
        for start in range(0, 32, rows):
            logits = state.step(ids[None, 40 + start : 40 + min(start + rows, 32)])[0]
            np.testing.assert_array_equal(logits, alone[start : start + rows])
    whole = models[form].new_state(min_rows=2)
    np.testing.assert_array_equal(whole.prompt([ids[:72]])[0], alone[-1])


def test_every_run_is_even(models, monkeypatch):
    from onnxforge.runtimes import prompt_chunk
    from onnxforge.runtimes.binding import StepBinding

    ids = np.random.default_rng(0).integers(0, VOCABULARY, 41)
    at_once = models[SHARED].new_state(min_rows=2).prompt([ids]).copy()
    seen = []
    run = StepBinding.run

    def watched(self, tokens, *rest):
        seen.append(tokens.shape[1])
        return run(self, tokens, *rest)

    monkeypatch.setattr(StepBinding, "run", watched)
    monkeypatch.setattr(prompt_chunk, "CPU_CHUNK", 8)
    np.testing.assert_array_equal(models[SHARED].new_state(min_rows=2).prompt([ids]), at_once)
    assert seen == [8] * 5 + [2]
    state = models[SHARED].new_state(min_rows=2)
    state.prompt([ids[:1]])
    assert seen[6:] == [2]
    assert state.lengths.tolist() == [1]
    state.step(ids[None, 1:4])
    assert seen[7:] == [4]
    assert state.lengths.tolist() == [4]


@pytest.mark.parametrize("prompt", [1, 2, CONTEXT - 9, CONTEXT - 2, CONTEXT - 1])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_context_may_fill_in_the_middle_of_a_draft(models, assistant, form, prompt):
    model, ids = models[form], [7] * prompt
    expected = reference(model, ids, CONTEXT - prompt, **NO_EOS)
    assert len(expected.token_ids) == CONTEXT - prompt
    for options in ({"max_draft_tokens": 31}, {"assistant_model": assistant, "max_draft_tokens": 9}):
        same(model.generate(ids, max_new_tokens=CONTEXT - prompt, **options, **NO_EOS), expected)
    with pytest.raises(ContextOverflow):
        model.generate(ids, max_new_tokens=CONTEXT - prompt + 1, max_draft_tokens=4)


def test_a_draft_model_of_a_smaller_context_drafts_while_it_can(models, tmp_path):
    with load(write_decoder(tmp_path / "short", Form(context=24)), threads=1) as short:
        expected = reference(models[SHARED], "the hand", 60, **NO_EOS)
        got = models[SHARED].generate("the hand", max_new_tokens=60, assistant_model=short, **NO_EOS)
        same(got, expected)
        assert 0 < got.stats.speculative.draft_forward_passes < 30


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_limit_may_fall_in_the_middle_of_a_draft(models, count):
    model = models[SHARED]
    expected = reference(model, "the hand", 30, **NO_EOS).token_ids[:count]
    got = model.generate("the hand", max_new_tokens=count, max_draft_tokens=31, **NO_EOS)
    assert got.token_ids == expected
    assert got.finish_reason == "length"


def foreseen(free, text_length):
    """A drafter that knows the answer."""
    return Scripted(lambda text, count: list(free[len(text) - text_length :][:count]))


def test_an_end_of_text_token_inside_a_draft_ends_the_answer():
    table = np.full((1, 9, 9), -5.0, np.float32)
    for token in range(9):
        table[0, token, (token + 1) % 9] = 5.0
    options = GenerationOptions(eos_token_id=(6,))
    loop, answer = speculate(
        TableState(table),
        [1],
        options,
        Scripted(lambda text, n: list(range(text[-1] + 1, text[-1] + 1 + n))),
        20,
        length=Whole(6),
    )
    for _ in loop.steps():
        pass
    assert answer.tokens == [2, 3, 4, 5, 6]
    assert answer.finish_reason == "stop"
    stats = loop.stats(0)
    assert stats.new_tokens == 5
    assert stats.speculative.draft_tokens_accepted == stats.speculative.draft_tokens_proposed == 4


def test_a_stop_string_inside_accepted_tokens_ends_the_text_before_it(models):
    model = models[SHARED]
    ids = model.prompt_tokens("the hand")
    free = reference(model, ids, 60, **NO_EOS)
    stops = [free.text[at : at + 2] for at in range(2, 30) if "\ufffd" not in free.text[at : at + 2]]
    for stop in stops[:6]:
        expected = reference(model, ids, 60, stop=stop, **NO_EOS)
        assert expected.finish_reason == "stop"
        options = GenerationOptions(stop=(stop,))
        loop, answer = speculate(
            model.new_state(min_rows=2),
            ids,
            options,
            foreseen(free.token_ids, len(ids)),
            60,
            12,
            Whole(12),
            streamed=True,
            decode=model.tokenizer.decode,
        )
        pieces = [answer.take_piece() for _ in loop.steps()]
        assert "".join([*pieces, answer.take_piece()]) == expected.text
        assert tuple(answer.tokens) == expected.token_ids
        assert loop.stats(0).new_tokens == len(expected.token_ids)


def test_tokens_of_one_step_come_as_one_piece(models):
    model = models[SHARED]
    ids = model.prompt_tokens("the hand")
    free = reference(model, ids, 41, **NO_EOS)
    loop, answer = speculate(
        model.new_state(min_rows=2),
        ids,
        GenerationOptions(),
        foreseen(free.token_ids, len(ids)),
        41,
        9,
        Whole(9),
        streamed=True,
        decode=model.tokenizer.decode,
    )
    counts = [len(answer.tokens) for _ in loop.steps()]
    assert counts == [1, 11, 21, 31, 41]
    stats = loop.stats(0).speculative
    assert (stats.rounds, stats.draft_tokens_proposed, stats.draft_tokens_accepted) == (4, 36, 36)
    assert (stats.mean_emitted_tokens_per_round, stats.avg_draft_tokens_per_round) == (10.0, 9.0)
    assert (stats.acceptance_rate, stats.effective_k, stats.draft_forward_passes) == (1.0, 9, 0)


def test_a_long_match_goes_before_the_draft_model():
    table = np.full((1, 9, 9), -5.0, np.float32)
    table[0, np.arange(9), (np.arange(9) + 1) % 9] = 5.0
    passes = []
    for count in (20, 120):
        fill = drafting.ModelDrafter(TableState(table), 999, 9, drafting.Sampler(GenerationOptions(), ()), ())
        loop, answer = speculate(
            TableState(table),
            [0],
            GenerationOptions(),
            fill,
            count,
            length=Whole(4),
            free=drafting.NgramDrafter(),
        )
        for _ in loop.steps():
            pass
        assert answer.tokens == [(1 + i) % 9 for i in range(count)]
        passes.append(fill.forward_passes)
    assert passes[0] == passes[1] <= 12, "only while the circle was new"


def test_drawn_answers_repeat_with_a_seed_and_a_draft_model(models, assistant):
    def drawn(seed):
        return models[SHARED].generate(
            "the hand", max_new_tokens=60, do_sample=True, seed=seed, assistant_model=assistant, **NO_EOS
        )

    assert drawn(1).token_ids == drawn(1).token_ids != drawn(2).token_ids
    assert drawn(1).stats.speculative.draft_forward_passes > 0


def test_cancelling_ends_a_drafting_request_in_the_middle_of_a_run(tmp_path, models):
    token = CancelToken()
    with load(write_decoder(tmp_path / "slow", Form(slow=True)), threads=1) as slow:
        for options in (
            {"max_draft_tokens": 4},
            {"max_draft_tokens": 4, "assistant_model": models[SHARED]},
        ):
            started = time.perf_counter()
            got = slow.generate("the hand", max_new_tokens=20, deadline=0.2, **options)
            assert got.finish_reason == "deadline"
            assert time.perf_counter() - started < 2
        threading.Timer(0.2, token.cancel).start()
        quick = models[SHARED].generate(
            "the", max_new_tokens=20, cancel=token, assistant_model=slow, max_draft_tokens=4, **NO_EOS
        )
        assert quick.finish_reason == "cancelled"
        assert quick.token_ids == reference(models[SHARED], "the", 1, **NO_EOS).token_ids


def test_a_stream_that_is_closed_ends(models):
    with models[SHARED].stream("the hand", max_new_tokens=150, max_draft_tokens=4, **NO_EOS) as stream:
        assert next(stream)
    assert list(stream) == []


def test_nan_logits_are_an_error_in_the_middle_of_a_draft(tmp_path):
    with (
        load(write_decoder(tmp_path / "broken", Form(broken=True)), threads=1) as broken,
        pytest.raises(NumericalError, match="logits hold nan"),
    ):
        broken.generate("the", max_new_tokens=4, max_draft_tokens=4)


ENABLED = Speculation(enabled=True, max_draft_tokens=5, step_cost=(1.0, 1.1, 1.2))


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A decoder whose artifact drafts by default."""
    folder = write_decoder(tmp_path_factory.mktemp("default") / "a", SHARED)
    seal(folder, speculation=ENABLED)
    return load(folder, threads=1)


def test_the_artifact_says_whether_requests_draft(speaking, models):
    prompt = "the hand and the hand and"
    got = speaking.generate(prompt, max_new_tokens=60, **NO_EOS)
    assert 0 < got.stats.speculative.draft_tokens_proposed <= 5 * got.stats.speculative.rounds
    off = speaking.generate(prompt, max_new_tokens=60, max_draft_tokens=0, **NO_EOS)
    assert off.stats.speculative is None
    same(got, off)
    same(got, reference(models[SHARED], prompt, 60, **NO_EOS))
    assert models[SHARED].generate(prompt, max_new_tokens=5).stats.speculative is None


def test_a_batch_does_not_draft_by_default_and_refuses_to_when_asked(speaking, assistant):
    assert [r.stats.speculative for r in speaking.generate(["a", "b"], max_new_tokens=5)] == [None, None]
    for options in ({"max_draft_tokens": 3}, {"assistant_model": assistant}, {"min_rows": 2}):
        with pytest.raises(RequestError, match="takes one prompt, and this batch has 2"):
            speaking.generate(["a", "b"], **options)


def test_a_graph_without_a_shared_cache_says_so(decoders_by_form, assistant):
    for options in ({"max_draft_tokens": 3}, {"assistant_model": assistant}, {"min_rows": 2}):
        with pytest.raises(RequestError, match="needs GroupQueryAttention"):
            decoders_by_form[PLAIN].generate("a", **options)
    assert decoders_by_form[PLAIN].generate("a", max_new_tokens=3, max_draft_tokens=0).token_ids
    with pytest.raises(RequestError, match="min_rows is 2"):
        decoders_by_form[PLAIN].new_state(min_rows=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_draft_tokens": -1}, "max_draft_tokens is -1; pass a whole number from 0 .* to 31"),
        ({"max_draft_tokens": 32}, "max_draft_tokens is 32"),
        ({"max_draft_tokens": 2.0}, "max_draft_tokens is 2.0"),
        ({"max_draft_tokens": True}, "max_draft_tokens is True"),
        ({"prompt_lookup_num_tokens": 99}, "prompt_lookup_num_tokens is 99"),
        ({"max_draft_tokens": 3, "prompt_lookup_num_tokens": 3}, "name the same number"),
        ({"min_rows": 3}, "min_rows is 3"),
        ({"min_rows": 1, "max_draft_tokens": 3}, "min_rows is 1 and the request drafts"),
        ({"assistant_model": "folder"}, "assistant_model is 'folder'; pass a Decoder"),
    ],
)
def test_options_out_of_range_are_refused(decoder, options, message):
    for call in (decoder.generate, decoder.stream):
        with pytest.raises(RequestError, match=message):
            call("the", **options)


def test_two_ways_to_draft_are_refused(decoder, assistant):
    with pytest.raises(RequestError, match="two ways to draft"):
        decoder.generate("a", prompt_lookup_num_tokens=3, assistant_model=assistant)


def test_more_drafts_than_the_context_are_refused(tmp_path):
    with load(write_decoder(tmp_path / "short", Form(context=12)), threads=1) as short:
        with pytest.raises(RequestError, match=r"from 0 .* to 11, the model having a context of 12"):
            short.generate([7], max_draft_tokens=12)
        assert short.generate([7], max_draft_tokens=11, max_new_tokens=11, **NO_EOS).token_ids


def test_transformers_name_for_ngram_drafts(models):
    got = models[SHARED].generate("the hand", max_new_tokens=40, prompt_lookup_num_tokens=5, **NO_EOS)
    assert got.stats.speculative.rounds > 0
    same(got, reference(models[SHARED], "the hand", 40, **NO_EOS))


def test_a_draft_folder_drafts_for_every_request_and_is_closed_with_its_target(tmp_path):
    target, draft = write_decoder(tmp_path / "target"), write_decoder(tmp_path / "draft", seed=1)
    with load(target, threads=1, draft=draft) as model:
        assert isinstance(model, Decoder)
        got = model.generate("the hand", max_new_tokens=30, **NO_EOS)
        assert got.stats.speculative.draft_forward_passes > 0
        same(got, reference(model, "the hand", 30, **NO_EOS))
        lookup = model.generate("the hand", max_new_tokens=30, prompt_lookup_num_tokens=4, **NO_EOS)
        assert lookup.stats.speculative.draft_forward_passes == 0
        assert model.generate(["a", "b"], max_new_tokens=3)[1].stats.speculative is None
        drafting_graph = model._draft
    with pytest.raises(RequestError, match="closed"):
        _ = drafting_graph.graph


def test_an_artifact_may_bring_a_draft_of_its_own(tmp_path, models):
    """A graph of the same tokens beside the model's; here a whole other model."""
    folder = write_decoder(tmp_path / "target")
    draft = write_decoder(tmp_path / "draft", seed=1) / "onnx"
    (folder / "draft").mkdir()
    for name in ("model.onnx", "model.onnx_data"):
        (draft / name).rename(folder / "draft" / name)
    own = Speculation(True, 4, drafter="layer-skip", draft_graph="draft/model.onnx")
    seal(folder, speculation=own)
    with load(folder, threads=1) as model:
        got = model.generate("the hand", max_new_tokens=30, **NO_EOS)
        assert got.stats.speculative.draft_forward_passes > 0
        same(got, reference(models[SHARED], "the hand", 30, **NO_EOS))
        lookup = model.generate("the hand", max_new_tokens=30, prompt_lookup_num_tokens=4, **NO_EOS)
        assert lookup.stats.speculative.draft_forward_passes == 0


def test_a_draft_with_another_vocabulary_is_refused_with_the_difference(tmp_path, models):
    folder = write_decoder(tmp_path / "other")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["Ġthe"], tokenizer["model"]["vocab"]["the"] = (
        tokenizer["model"]["vocab"]["the"],
        tokenizer["model"]["vocab"]["Ġthe"],
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    seal(folder)
    message = r"cannot draft for .*: 2 tokens differ .* such as 'the': id \d+ and id \d+"
    with load(folder, threads=1) as other, pytest.raises(RequestError, match=message):
        models[SHARED].generate("the", assistant_model=other)
    with pytest.raises(RequestError, match=message):
        load(models[SHARED].folder, threads=1, draft=folder)


def test_encoders_neither_draft_nor_are_drafted_for(tmp_path):
    encoder, decoder = write_encoder(tmp_path / "encoder"), write_decoder(tmp_path / "decoder")
    with pytest.raises(RequestError, match="nothing can be drafted for it"):
        load(encoder, draft=decoder)
    with pytest.raises(RequestError, match=r"is an encoder .* cannot draft tokens"):
        load(decoder, draft=encoder)


def test_a_small_logits_row_of_the_draft_is_enough(models):
    """Padded vocabularies: ids that only one of the two models has a row for are never proposed."""
    state = TableState(np.zeros((1, 9, 9), np.float32))
    state.table[..., 8] = 4.0
    fill = drafting.ModelDrafter(state, 100, 5, drafting.Sampler(GenerationOptions(), ()), ())
    fill.read([1, 2])
    assert max(fill.propose(4).tokens) < 5
