"""Every run of a request that drafts is even, and even runs agree bit for bit."""

import numpy as np
import pytest
from plain_decoding import FORMS
from tiny_artifacts import SHARED, VOCABULARY


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
