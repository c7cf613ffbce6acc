"""Requests of random prompts and options: drafting gives what plain decoding gives, the same errors too."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_decoding import FORMS, NO_EOS, reference, same
from tiny_artifacts import CONTEXT, VOCABULARY, Form, write_decoder

from onnxforge.runtimes import CancelToken, ContextOverflow, load

TOKENS = st.integers(6, VOCABULARY - 1)
PROMPTS = st.one_of(
    st.lists(TOKENS, min_size=1, max_size=40),
    st.lists(st.integers(60, 64), min_size=1, max_size=CONTEXT + 2),
    st.builds(lambda part, times: part * times, st.lists(TOKENS, min_size=1, max_size=6), st.integers(1, 30)),
)
OPTIONS = st.fixed_dictionaries(
    {"eos_token_id": st.sampled_from([[], [1], [70, 71, 72, 73], list(range(6, 200, 9)), [10**6]])},
    optional={
        "repetition_penalty": st.sampled_from([0.8, 1.1, 5.0]),
        "stop": st.sampled_from(["a", "the", ["x", "y"], "\ufffd"]),
        "truncate": st.just("left"),
    },
)
DRAWN = st.fixed_dictionaries(
    {"do_sample": st.just(True), "seed": st.integers(0, 9)},
    optional={
        "temperature": st.sampled_from([1e-9, 0.3, 2.0]),
        "top_k": st.sampled_from([0, 1, 5, 10**6]),
        "top_p": st.sampled_from([1e-9, 0.4, 0.95]),
    },
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_drafting_gives_the_plain_answer_or_the_plain_error(models, assistant, data):
    model, prompt = models[data.draw(st.sampled_from(FORMS))], data.draw(PROMPTS)
    count = data.draw(st.sampled_from([1, 2, 3, 30, max(CONTEXT - len(prompt), 1), CONTEXT]))
    options = {**data.draw(OPTIONS), **data.draw(st.one_of(st.just({}), DRAWN))}
    drafting = {"max_new_tokens": count, "max_draft_tokens": data.draw(st.integers(1, 31)), **options}
    if "do_sample" not in options and data.draw(st.booleans()):
        drafting["assistant_model"] = assistant
    try:
        expected = reference(model, prompt, count, **options)
    except ContextOverflow as overflow:
        with pytest.raises(ContextOverflow, match=re.escape(str(overflow))):
            model.generate(prompt, **drafting)
        return
    same(model.generate(prompt, **drafting), expected)
    cancel = CancelToken()
    stream, pieces, most = model.stream(prompt, cancel=cancel, **drafting), [], data.draw(st.integers(1, 40))
    for piece in stream:
        pieces.append(piece)
        if len(pieces) == most:
            cancel.cancel()
    assert "".join(pieces) == stream.result.text
    if stream.result.finish_reason == "cancelled":
        assert stream.result.token_ids == expected.token_ids[: len(stream.result.token_ids)]
    else:
        same(stream.result, expected)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_long_prompts_come_in_parts_and_long_answers_grow_the_cache(tmp_path, int8):
    """Parts of 256 tokens; a cache that begins with room for 256 new ones."""
    rng = np.random.default_rng(0)
    with load(write_decoder(tmp_path / "long", Form(int8=int8, context=900)), threads=1) as model:
        for length, count in ((255, 10), (257, 300), (512, 388), (513, 387), (1, 899)):
            prompt = rng.integers(60, 66, length).tolist()
            expected = reference(model, prompt, count, **NO_EOS)
            assert len(expected.token_ids) == count
            for most in (4, 31):
                same(model.generate(prompt, max_new_tokens=count, max_draft_tokens=most, **NO_EOS), expected)
