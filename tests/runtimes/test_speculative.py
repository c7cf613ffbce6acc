"""Drafting changes no token: real kernels, tiny decoders, every kind of draft."""

import numpy as np
import pytest
from fake_models import Scripted, Whole, speculate
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_decoding import FORMS, NO_EOS, PROMPTS, reference, same
from tiny_artifacts import CONTEXT, SHARED, VOCABULARY

from onnxforge.runtimes import GenerationOptions, drafting


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


@settings(max_examples=40)
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


def test_transformers_name_for_ngram_drafts(models):
    got = models[SHARED].generate("the hand", max_new_tokens=40, prompt_lookup_num_tokens=5, **NO_EOS)
    assert got.stats.speculative.rounds > 0
    same(got, reference(models[SHARED], "the hand", 40, **NO_EOS))


def test_drawn_answers_repeat_with_a_seed_and_a_draft_model(models, assistant):
    def drawn(seed):
        return models[SHARED].generate(
            "the hand", max_new_tokens=60, do_sample=True, seed=seed, assistant_model=assistant, **NO_EOS
        )

    assert drawn(1).token_ids == drawn(1).token_ids != drawn(2).token_ids
    assert drawn(1).stats.speculative.draft_forward_passes > 0
