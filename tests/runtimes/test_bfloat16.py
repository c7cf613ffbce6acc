"""Caches and logits that numpy has no type for."""

import dataclasses

import numpy as np
import pytest
from tiny_artifacts import PLAIN, VOCABULARY, write_decoder
from whole_run import whole

from onnxforge.runtimes import load
from onnxforge.runtimes.elements import ELEMENTS

BFLOAT16 = ELEMENTS["tensor(bfloat16)"]


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    form = dataclasses.replace(PLAIN, bfloat16=True)
    with load(write_decoder(tmp_path_factory.mktemp("b") / "m", form), threads=1) as model:
        yield model


def test_bits_become_the_numbers_that_they_are_the_upper_half_of():
    numbers = np.array([0.0, -0.0, 1.0, -1.5, 3.0e38, np.inf, 2.0**-130], np.float32)
    bits = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    back = BFLOAT16.to_float32(bits)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, numbers, rtol=2**-7)
    assert np.array_equal(np.signbit(back), np.signbit(numbers))
    assert np.isnan(BFLOAT16.to_float32(np.array([0x7FC0], np.uint16)))[0]
    same = np.ones(3, np.float32)
    assert ELEMENTS["tensor(float)"].to_float32(same) is same


def test_a_decoder_in_bfloat16_is_the_float_one_but_for_rounding(halved, decoders_by_form):
    ids = np.random.default_rng(3).integers(0, VOCABULARY, 30)
    expected = whole(decoders_by_form[PLAIN], ids)
    state = halved.new_state()
    found = [state.prompt([ids[:12]])[0].copy()]
    found += [state.step(ids[None, at : at + 1])[0, 0].copy() for at in range(12, 30)]
    assert halved.graph.cache[0].element is BFLOAT16
    assert state.cache_bytes == 30 * halved.graph.cache_bytes_per_token
    error = np.abs(np.array(found) - expected[11:]).max() / np.abs(expected).max()
    assert 1e-5 < error < 0.03  # 8 bits of mantissa


def test_rewinding_and_keeping_rows_carry_the_bits(halved):
    prompts = [np.arange(1, 9), np.arange(20, 24)]
    state = halved.new_state(rows=2)
    state.prompt(prompts)
    first = state.step(np.array([[5], [6]])).copy()
    state.rewind(1)
    assert np.array_equal(state.step(np.array([[5], [6]])), first)
    state.rewind(1)
    state.keep_rows([1])
    np.testing.assert_allclose(state.step(np.array([[6]]))[0], first[1], rtol=0.02, atol=0.02)
    answer = halved.generate("the", max_new_tokens=8, eos_token_id=())
    assert len(answer.token_ids) == 8
