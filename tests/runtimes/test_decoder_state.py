import numpy as np
import pytest
from tiny_artifacts import CONTEXT, FORMS, PLAIN, SHARED, SHARED_POSITIONS, VOCABULARY
from whole_run import whole

from onnxforge.runtimes import ContextOverflow, RequestError, prompt_chunk

forms = pytest.mark.parametrize("form", FORMS, ids=str)


def tokens(count, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, count)


@forms
def test_steps_of_any_size_give_the_logits_of_one_run(decoders_by_form, form):
    model, ids = decoders_by_form[form], tokens(40)
    expected = whole(model, ids)
    state = model.new_state(capacity=1)
    assert state.prompt([ids[:5]]).shape == (1, VOCABULARY)
    at = 5
    for size in (1, 1, 7, 1, 20, 5):
        logits = state.step(ids[None, at : at + size])
        assert logits.shape == (1, size, VOCABULARY)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits[0], expected[at : at + size], atol=2e-5)
        at += size
    assert state.lengths.tolist() == [40]


@forms
def test_the_prompt_gives_the_last_row_and_a_step_can_too(decoders_by_form, form):
    model, ids = decoders_by_form[form], tokens(30)
    expected = whole(model, ids)
    state = model.new_state()
    np.testing.assert_allclose(state.prompt([ids[:20]])[0], expected[19], atol=2e-5)
    logits = state.step(ids[None, 20:], last_only=True)
    assert logits.shape == (1, 1, VOCABULARY)
    np.testing.assert_allclose(logits[0, 0], expected[29], atol=2e-5)


@forms
def test_a_prompt_in_chunks_equals_a_prompt_at_once(decoders_by_form, form, monkeypatch):
    model, prompts = decoders_by_form[form], [tokens(50), tokens(23, 1), tokens(1, 2)]
    at_once = model.new_state(rows=3).prompt(prompts).copy()
    for name in ("CHUNK", "CPU_CHUNK"):
        monkeypatch.setattr(prompt_chunk, name, 8)
    np.testing.assert_allclose(model.new_state(rows=3).prompt(prompts), at_once, atol=2e-5)


def test_chunks_are_bounded_by_the_logits_they_make(decoders_by_form):
    whole_logits = decoders_by_form[FORMS[3]].graph
    assert prompt_chunk.prompt_chunk(decoders_by_form[SHARED].graph, 1) == 256
    assert prompt_chunk.prompt_chunk(whole_logits, 1) == 256
    rows = 64 * 1024 * 1024 // (4 * VOCABULARY * 100)
    assert prompt_chunk.prompt_chunk(whole_logits, rows) == 100
    assert prompt_chunk.prompt_chunk(whole_logits, 10**9) == 1


@forms
def test_rewinding_and_going_on_equals_never_having_been_there(decoders_by_form, form):
    model, ids = decoders_by_form[form], tokens(30)
    expected = whole(model, ids)
    state = model.new_state()
    state.prompt([ids[:10]])
    state.step(tokens(6, 7)[None])
    state.rewind(6)
    np.testing.assert_allclose(state.step(ids[None, 10:14])[0], expected[10:14], atol=2e-5)
    state.rewind(0)
    state.rewind(14)
    assert state.lengths.tolist() == [0]
    np.testing.assert_allclose(state.prompt([ids])[0], expected[-1], atol=2e-5)
    for count in (-1, 31):
        with pytest.raises(RequestError, match="Cannot rewind"):
            state.rewind(count)


@forms
def test_rows_of_different_lengths_equal_single_rows(decoders_by_form, form):
    model = decoders_by_form[form]
    prompts = [tokens(n, n) for n in (1, 12, 3, 12)]
    continuations = np.stack([tokens(9, 100 + row) for row in range(4)])
    state = model.new_state(rows=4, capacity=4)
    found = [state.prompt(prompts).copy()]
    found += [state.step(continuations[:, [at]])[:, 0].copy() for at in range(9)]
    for row, prompt in enumerate(prompts):
        expected = whole(model, np.concatenate([prompt, continuations[row]]))[len(prompt) - 1 :]
        for at, logits in enumerate(found):
            np.testing.assert_allclose(logits[row], expected[at], atol=3e-5)
    assert state.lengths.tolist() == [10, 21, 12, 21]


@forms
def test_kept_rows_go_on_alone_and_in_the_order_asked(decoders_by_form, form):
    model = decoders_by_form[form]
    prompts = [tokens(n, n) for n in (5, 9, 2)]
    state = model.new_state(rows=3)
    state.prompt(prompts)
    state.keep_rows([2, 1])
    assert (state.rows, state.lengths.tolist()) == (2, [2, 9])
    logits = state.step(np.array([[4], [5]]))[:, 0].copy()
    np.testing.assert_allclose(logits[0], whole(model, np.append(prompts[2], 4))[-1], atol=2e-5)
    np.testing.assert_allclose(logits[1], whole(model, np.append(prompts[1], 5))[-1], atol=2e-5)
    state.rewind(1)
    state.keep_rows([1])
    again = state.step(np.array([[7]]))[0, 0]
    np.testing.assert_allclose(again, whole(model, np.append(prompts[1], 7))[-1], atol=2e-5)


@pytest.mark.parametrize("form", [SHARED, SHARED_POSITIONS], ids=str)
def test_a_growing_cache_is_bitwise_a_roomy_one(decoders_by_form, form):
    model, ids = decoders_by_form[form], tokens(150)
    growing, roomy = model.new_state(capacity=1), model.new_state(capacity=192)
    assert (growing.capacity, roomy.capacity) == (64, 192)
    sizes = []
    for token in ids:
        one = growing.step(token.reshape(1, 1)).copy()
        assert np.array_equal(one, roomy.step(token.reshape(1, 1)))
        sizes.append(growing.capacity)
    assert sorted(set(sizes)) == [64, 128, CONTEXT]


def test_token_steps_reuse_their_buffers(decoders_by_form):
    state = decoders_by_form[SHARED].new_state(capacity=64)
    state.prompt([tokens(5)])
    addresses = {state.step(np.array([[token]])).ctypes.data for token in range(20)}
    assert len(addresses) == 1


@forms
def test_the_context_can_be_filled_and_not_exceeded(decoders_by_form, form):
    model = decoders_by_form[form]
    state = model.new_state(capacity=1)
    state.prompt([tokens(CONTEXT - 1)])
    state.step(np.array([[3]]))
    with pytest.raises(
        ContextOverflow, match=f"{CONTEXT + 1} tokens do not fit the model's context of {CONTEXT}"
    ):
        state.step(np.array([[3]]))
    assert state.lengths.tolist() == [CONTEXT]


def test_shared_rows_step_one_token_at_a_time(decoders_by_form):
    state = decoders_by_form[SHARED].new_state(rows=2)
    state.prompt([tokens(3), tokens(4)])
    with pytest.raises(RequestError, match="for one row only"):
        state.step(np.zeros((2, 2), np.int64))


def test_both_cache_forms_give_the_same_numbers(decoders_by_form):
    prompts = [tokens(17), tokens(4, 1)]
    shared = decoders_by_form[SHARED_POSITIONS].new_state(rows=2).prompt(prompts)
    np.testing.assert_allclose(shared, decoders_by_form[PLAIN].new_state(rows=2).prompt(prompts), atol=2e-5)
