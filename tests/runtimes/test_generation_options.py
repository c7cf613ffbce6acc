"""Defaults from a model's own files: what counts, what is only said, and what transformers tolerates."""

import warnings

import pytest

from onnxforge.runtimes import ArtifactError, GenerationOptions, RequestError
from onnxforge.runtimes.generation_options import options_from_config


def test_keys_that_would_decide_the_next_token_are_named_once():
    generation = {
        "min_p": 0.05,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 5,
        "suppress_tokens": [7],
        "num_beams": 4,
        "typical_p": 0.9,
        "stop_strings": ["###"],
    }
    with pytest.warns(UserWarning, match="does not apply") as caught:
        options_from_config(generation, {})
    assert len(caught) == 1
    assert all(f"{name}={value!r}" in str(caught[0].message) for name, value in generation.items())


def test_keys_that_change_nothing_are_not_worth_a_word():
    from transformers import GenerationConfig

    held = GenerationConfig()
    neutral = {"suppress_tokens": [], "sequence_bias": {}, "min_p": 0.0, "guidance_scale": 1.0}
    for generation in (neutral, held.to_dict(), held._get_default_generation_params(), {"max_length": 4096}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            options_from_config(generation, {})


@pytest.mark.parametrize("generation", [{}, {"eos_token_id": None}])
def test_an_end_that_is_not_said_is_that_of_the_config(generation):
    assert options_from_config(generation, {"eos_token_id": [5, 6]}).eos_token_id == (5, 6)
    assert options_from_config(generation, {"eos_token_id": None}).eos_token_id == ()
    assert options_from_config({"eos_token_id": 0}, {"eos_token_id": 9}).eos_token_id == (0,)


SENSELESS = [{"temperature": 0.0}, {"top_p": 0.0}, {"top_k": -1}, {"temperature": 0.0, "do_sample": False}]


@pytest.mark.parametrize("generation", SENSELESS, ids=str)
def test_sampling_values_count_only_where_tokens_are_drawn(generation):
    defaults = options_from_config(generation, {})
    assert not defaults.do_sample
    assert defaults.changed({"max_new_tokens": 3}).max_new_tokens == 3
    with pytest.raises(RequestError, match=f"{next(iter(generation))} is "):
        defaults.changed({"do_sample": True})
    assert defaults.changed({"do_sample": True, "temperature": 0.5, "top_p": 1.0, "top_k": 5}).do_sample
    with pytest.raises(ArtifactError, match=r"generation_config\.json: \w+ is "):
        options_from_config(generation | {"do_sample": True}, {})


@pytest.mark.parametrize(
    "asked", [{"temperature": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"temperature": "hot"}]
)
def test_what_the_caller_asks_for_is_always_checked(asked):
    with pytest.raises(RequestError, match=f"{next(iter(asked))} is "):
        GenerationOptions().changed(asked)


def test_a_penalty_counts_without_drawing_too():
    with pytest.raises(ArtifactError, match="repetition_penalty is 0"):
        options_from_config({"repetition_penalty": 0}, {})
