"""Captured steps without a GPU: what they are fed and bound to, on the CPU, where nothing is recorded."""

import dataclasses
import gc
import warnings

import numpy as np
import pytest
from tiny_artifacts import CONTEXT, SHARED, SHARED_POSITIONS, VOCABULARY
from whole_run import whole

from onnxforge.runtimes import RequestError, load
from onnxforge.runtimes.captured_steps import LONGEST, CapturedSteps
from onnxforge.runtimes.decoder_graph import DecoderGraph
from onnxforge.runtimes.decoder_state import new_state

shared = pytest.mark.parametrize("form", [SHARED, SHARED_POSITIONS], ids=str)


def tokens(count, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, count)


def capturing(model):
    """The model's graph, as a GPU that records steps has it."""
    return dataclasses.replace(model.graph, captured_steps=CapturedSteps())


@pytest.fixture
def runs(monkeypatch):
    """The lengths of masks, for each captured step that ran."""
    from onnxforge.runtimes import captured_steps

    found, real = [], captured_steps._CapturedStep.run

    def counted(step, tokens, lengths):
        found.append((step._memory.rows, tokens.shape[1], step._memory.capacity))
        return real(step, tokens, lengths)

    monkeypatch.setattr(captured_steps._CapturedStep, "run", counted)
    return found


@shared
def test_captured_steps_give_the_logits_of_one_run(decoders_by_form, form, runs):
    model, ids = decoders_by_form[form], tokens(60)
    expected, state = whole(model, ids), new_state(capturing(model), 1, 8)
    assert np.allclose(state.prompt([ids[:5]])[0], expected[4], atol=2e-5)
    at = 5
    for size in (1, 1, 7, 1, 20, LONGEST - 7):
        found = state.step(ids[None, at : at + size])
        np.testing.assert_allclose(found[0], expected[at : at + size], atol=2e-5)
        at += size
    assert [count for _, count, _ in runs] == [1, 1, 7, 1, 20, LONGEST - 7]
    assert {capacity for *_, capacity in runs} == {CONTEXT}  # the mask's length is always the memory's


@shared
def test_rows_of_different_lengths_growth_and_rewinding(decoders_by_form, form, runs, monkeypatch):
    monkeypatch.setattr("onnxforge.runtimes.captured_steps._LEAST", 16)
    model = decoders_by_form[form]
    prompts = [tokens(n, n) for n in (1, 12, 3)]
    rest = np.stack([tokens(40, 100 + row) for row in range(3)])
    state = new_state(capturing(model), 3, 4)
    state.prompt(prompts)
    state.step(tokens(3, 9)[:, None])
    state.rewind(1)
    found = [state.step(rest[:, [at]])[:, 0].copy() for at in range(40)]
    for row, prompt in enumerate(prompts):
        expected = whole(model, np.concatenate([prompt, rest[row]]))[len(prompt) :]
        np.testing.assert_allclose([step[row] for step in found], expected, atol=1e-4)
    assert sorted({capacity for *_, capacity in runs}) == [16, 32, 64]


def test_a_long_step_and_the_last_row_of_many_are_plain_ones(decoders_by_form, runs):
    model, ids = decoders_by_form[SHARED], tokens(LONGEST + 12)
    state, expected = new_state(capturing(model), 1, 8), whole(model, ids)
    state.prompt([ids[:1]])
    assert np.allclose(state.step(ids[None, 1 : LONGEST + 2])[0], expected[1 : LONGEST + 2], atol=2e-5)
    last = state.step(ids[None, LONGEST + 2 : LONGEST + 8], last_only=True)
    assert np.allclose(last[0, 0], expected[LONGEST + 7], atol=2e-5)
    assert runs == []


def test_answers_are_those_without(decoders_by_form, runs):
    model = decoders_by_form[SHARED]
    plain = model.generate("the", max_new_tokens=30, eos_token_id=())
    batch = [p.token_ids for p in model.generate(["the", "and so on"], max_new_tokens=9)]
    model._open_graph, before = capturing(model), model.graph
    try:
        assert model.generate("the", max_new_tokens=30, eos_token_id=()).token_ids == plain.token_ids
        drafted = model.generate("the", max_new_tokens=30, eos_token_id=(), max_draft_tokens=3)
        assert drafted.token_ids == plain.token_ids
        assert [p.token_ids for p in model.generate(["the", "and so on"], max_new_tokens=9)] == batch
    finally:
        model._open_graph = before
    assert len({count for _, count, _ in runs}) > 1


def test_memory_of_ended_requests_serves_the_next(decoders_by_form):
    graph = capturing(decoders_by_form[SHARED])
    first = new_state(graph, 1, 8)
    first.prompt([tokens(9)])
    first.step(np.array([[3]]))
    memory, steps = first._memory, graph.captured_steps._steps
    other = new_state(graph, 1, 8)
    assert other._memory is not memory  # still in use
    del first
    gc.collect()
    again = new_state(graph, 1, 8)
    assert again._memory is memory
    assert list(steps) == [memory]
    fresh = new_state(graph, 1, 8)
    for state in (again, fresh):
        state.prompt([tokens(4)])
    assert np.array_equal(again.step(np.array([[5]])), fresh.step(np.array([[5]])))
    assert new_state(graph, 2, 8)._memory.rows == 2


def test_little_memory_is_kept(decoders_by_form):
    graph = capturing(decoders_by_form[SHARED])
    states = [new_state(graph, 1, 8) for _ in range(12)]
    for state in states:
        state.prompt([tokens(4)])
        state.step(np.array([[5]]))
    assert len(graph.captured_steps._steps) == 12
    del states, state
    gc.collect()
    assert len(graph.captured_steps._free) == len(graph.captured_steps._steps) == 8


@pytest.mark.parametrize("fault", ["fails", "differs"])
def test_a_recording_that_does_not_work_is_told_of_and_left(decoders_by_form, monkeypatch, fault):
    from onnxforge.runtimes import captured_steps

    def broken(step, fed, lengths):
        if fault == "fails":
            raise RuntimeError("operation not permitted when stream is capturing")
        return np.zeros((1, 1, VOCABULARY), np.float32)

    monkeypatch.setattr(captured_steps._CapturedStep, "run", broken)
    model, ids = decoders_by_form[SHARED], tokens(9)
    state = new_state(capturing(model), 1, 8)
    state.prompt([ids[:5]])
    with pytest.warns(RuntimeWarning, match="capturing" if fault == "fails" else "not those of a plain step"):
        found = [state.step(ids[None, 5:6])[0, 0].copy()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found += [state.step(ids[None, at : at + 1])[0, 0].copy() for at in (6, 7, 8)]
    np.testing.assert_allclose(found, whole(model, ids)[5:], atol=2e-5)
    assert state.lengths.tolist() == [9]


def test_on_a_device_rows_move_when_half_have_ended(decoders_by_form, monkeypatch):
    monkeypatch.setattr(DecoderGraph, "on_host", False)
    model = decoders_by_form[SHARED]
    prompts = [tokens(n, n) for n in (5, 9, 2, 7)]
    state = model.new_state(rows=4)
    state.prompt(prompts)
    state.keep_rows([3, 0, 1])
    assert (state.rows, state._memory.rows, state.lengths.tolist()) == (3, 4, [7, 5, 9])
    texts = [[*prompts[3]], [*prompts[0]], [*prompts[1]]]
    for fed in ([4, 5, 6], [1, 2, 3]):
        logits = state.step(np.array(fed)[:, None])[:, 0].copy()
        for row, text in enumerate(texts):
            text.append(fed[row])
            np.testing.assert_allclose(logits[row], whole(model, np.array(text))[-1], atol=3e-5)
    state.rewind(1)
    state.keep_rows([2])
    assert (state.rows, state._memory.rows, state.lengths.tolist()) == (1, 1, [10])
    again = state.step(np.array([[8]]))[0, 0]
    np.testing.assert_allclose(again, whole(model, np.array([*texts[2][:-1], 8]))[-1], atol=3e-5)


def test_it_is_refused_where_it_cannot_be(decoders_by_form):
    folder = decoders_by_form[SHARED].folder
    with pytest.raises(RequestError, match="cuda_graph=True is not possible: it runs on CPUExecutionProv"):
        load(folder, cuda_graph=True)
    with load(folder, cuda_graph=False) as model:
        assert model.graph.captured_steps is None
