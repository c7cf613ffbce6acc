"""Where a drafting request ends: context, limit, end of text, stop strings, cancellation, errors."""

import threading
import time

import numpy as np
import pytest
from fake_models import Scripted, TableState, Whole, speculate
from plain_decoding import FORMS, NO_EOS, reference, same
from tiny_artifacts import CONTEXT, SHARED, Form, write_decoder

from onnxforge.runtimes import CancelToken, ContextOverflow, GenerationOptions, NumericalError, load


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
