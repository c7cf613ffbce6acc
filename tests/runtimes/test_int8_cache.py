"""Decoding over an int8 cache: everything that a float cache can do, in a quarter of its bytes.

A run of one token and a run of many may round their products differently, and then a cached number may land
on the next step of its grid. That moves a logit by a few tenths of up to 25; a cache that is read wrongly
moves most of them by more than 1.
"""

import numpy as np
import pytest
from tiny_artifacts import (
    CONTEXT,
    HEAD_DIM,
    KV_HEADS,
    LAYERS,
    SHARED,
    SHARED_POSITIONS,
    VOCABULARY,
    Form,
    write_decoder,
)
from whole_run import whole

from onnxforge.runtimes import ArtifactError, ContextOverflow, load, prompt_chunk
from onnxforge.runtimes.decoder_graph import read_graph

INT8 = Form(int8=True)
FORMS = (INT8, Form(int8=True, positions=True), Form(int8=True, keeps_logits=False))


@pytest.fixture(scope="module", params=FORMS, ids=str)
def model(request, tmp_path_factory):
    with load(write_decoder(tmp_path_factory.mktemp("int8") / "a", request.param), threads=1) as decoder:
        yield decoder


def tokens(count, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, count)


def close(got, meant):
    difference = np.abs(np.asarray(got) - meant)
    assert difference.mean() < 0.05
    assert difference.max() < 1


def test_the_graph_says_what_a_token_costs(model, decoders_by_form):
    elements = 2 * LAYERS * KV_HEADS * HEAD_DIM
    assert model.graph.quantized_cache
    assert model.graph.cache_bytes_per_token == elements
    assert decoders_by_form[SHARED].graph.cache_bytes_per_token == 4 * elements
    assert not decoders_by_form[SHARED].graph.quantized_cache
    state = model.new_state(rows=3, capacity=100)
    assert (state.capacity, state.cache_bytes) == (128, 3 * 128 * elements)


def test_it_is_near_the_float_cache_and_not_equal(model, decoders_by_form):
    ids = tokens(40)
    floats = SHARED_POSITIONS if model.graph.takes_positions else SHARED
    theirs, ours = whole(decoders_by_form[floats], ids), whole(model, ids)
    assert 1e-4 < np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 0.1


def test_steps_of_any_size_give_the_logits_of_one_run(model):
    ids = tokens(40)
    expected = whole(model, ids)
    state = model.new_state(capacity=1)
    close(state.prompt([ids[:5]])[0], expected[4])
    at = 5
    for size in (1, 1, 7, 1, 20, 5):
        close(state.step(ids[None, at : at + size])[0], expected[at : at + size])
        at += size


def test_rows_of_different_lengths_equal_single_rows(model):
    prompts = [tokens(n, n) for n in (1, 12, 3, 12)]
    following = np.stack([tokens(9, 100 + row) for row in range(4)])
    state = model.new_state(rows=4, capacity=4)
    found = [state.prompt(prompts).copy()]
    found += [state.step(following[:, [at]])[:, 0].copy() for at in range(9)]
    for row, prompt in enumerate(prompts):
        expected = whole(model, np.concatenate([prompt, following[row]]))[len(prompt) - 1 :]
        close([logits[row] for logits in found], expected)


def test_a_prompt_is_read_in_short_chunks(model, monkeypatch):
    prompts = [tokens(50), tokens(23, 1)]
    at_once = model.new_state(rows=2).prompt(prompts).copy()
    assert prompt_chunk.prompt_chunk(model.graph, 1) == 256
    monkeypatch.setattr(prompt_chunk, "CPU_CHUNK", 8)
    close(model.new_state(rows=2).prompt(prompts), at_once)


def test_rewinding_to_the_start_and_keeping_rows(model):
    ids = tokens(30)
    expected = whole(model, ids)
    state = model.new_state(rows=2)
    state.prompt([tokens(9, 3), ids[:10]])
    state.step(np.array([[1], [2]]))
    state.keep_rows([1])
    state.rewind(1)
    close(state.step(ids[None, 10:14])[0], expected[10:14])
    state.rewind(14)
    close(state.prompt([ids])[0], expected[-1])


def test_a_growing_cache_is_bitwise_a_roomy_one(model):
    growing, roomy = model.new_state(capacity=1), model.new_state(capacity=CONTEXT)
    sizes = set()
    for token in tokens(150):
        one = growing.step(token.reshape(1, 1)).copy()
        assert np.array_equal(one, roomy.step(token.reshape(1, 1)))
        sizes.add(growing.cache_bytes // model.graph.cache_bytes_per_token)
    assert sizes == {64, 128, CONTEXT}
    with pytest.raises(ContextOverflow):
        growing.step(tokens(CONTEXT)[None])


def test_generation(model):
    batch = model.generate(["the cat", "and then the other one"], max_new_tokens=8, do_sample=False)
    alone = [
        model.generate(p, max_new_tokens=8, do_sample=False) for p in ("the cat", "and then the other one")
    ]
    assert [r.token_ids for r in batch] == [r.token_ids for r in alone]


def test_past_and_present_of_two_types_are_refused(model, decoders_by_form):
    """A graph whose present is not its next past cannot be stepped."""

    class Mixed:
        def __init__(self, session, other):
            self.get_inputs, self.get_outputs = session.get_inputs, other.get_outputs
            self.get_overridable_initializers = session.get_overridable_initializers

    other = decoders_by_form[SHARED].graph.session
    with pytest.raises(ArtifactError, match=r"past_key_values.*int8.*present.*float"):
        read_graph(Mixed(model.graph.session, other), "cpu", CONTEXT, True, VOCABULARY)
