"""The sampler draws from the distribution that transformers' processors define."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxforge.runtimes import GenerationOptions, NumericalError
from onnxforge.runtimes.sampling import Sampler

SIZE, DRAWS = 40, 6000


def logits(seed=0, size=SIZE):
    return (np.random.default_rng(seed).standard_normal(size) * 2).astype(np.float32)


def probabilities(scores, prompt, options):
    """transformers' own processors and warpers, in its order: float64 [vocabulary]."""
    import torch
    from transformers.generation import logits_process as hf

    ids, found = torch.tensor([prompt]), torch.from_numpy(scores.copy())[None]
    if options.repetition_penalty != 1.0:
        found = hf.RepetitionPenaltyLogitsProcessor(options.repetition_penalty)(ids, found)
    if options.temperature != 1.0:
        found = hf.TemperatureLogitsWarper(options.temperature)(ids, found)
    if options.top_k:
        found = hf.TopKLogitsWarper(options.top_k)(ids, found)
    if options.top_p < 1.0:
        found = hf.TopPLogitsWarper(options.top_p)(ids, found)
    return torch.softmax(found.double(), dim=-1)[0].numpy()


CASES = [
    {"top_k": 0},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 0, "top_p": 0.6},
    {"top_k": 12, "top_p": 0.8},
    {"top_k": 0, "temperature": 0.5},
    {"top_k": 0, "temperature": 3.0},
    {"top_k": 10, "top_p": 0.9, "temperature": 1.7, "repetition_penalty": 1.4},
    {"top_k": 0, "repetition_penalty": 2.0},
    {"top_k": 0, "repetition_penalty": 0.7},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_draws_follow_the_distribution(case):
    options = GenerationOptions(do_sample=True, seed=5, **case)
    prompt, scores = [3, 7, 7, 21], logits()
    expected = probabilities(scores, prompt, options)
    counts = np.zeros(SIZE)
    for stream in range(DRAWS):
        counts[Sampler(options, prompt, stream).choose(scores.copy())] += 1
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    likely = possible & (expected * DRAWS >= 5)
    observed = np.append(counts[likely], counts[possible & ~likely].sum())
    wanted = np.append(expected[likely], expected[possible & ~likely].sum()) * DRAWS
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    freedom = max(len(wanted) - 1, 1)
    # mean + 5 standard deviations of chi-square: one seeded draw in about a million would be beyond it
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(0, SIZE + 2),
    st.floats(0.01, 1.0),
    st.floats(0.1, 5.0),
    st.sampled_from([0.8, 1.0, 1.3]),
)
def test_no_token_outside_the_reference_support_is_ever_drawn(seed, top_k, top_p, temperature, penalty):
    options = GenerationOptions(
        do_sample=True, seed=1, top_k=top_k, top_p=top_p, temperature=temperature, repetition_penalty=penalty
    )
    scores = logits(seed)
    expected = probabilities(scores, [1, 2, 3], options)
    # a border that rounding may move: the reference sums in float32
    nearly = probabilities(
        scores,
        [1, 2, 3],
        GenerationOptions(
            top_k=top_k,
            top_p=min(top_p + 1e-5, 1.0),
            temperature=temperature,
            repetition_penalty=penalty,
        ),
    )
    drawn = {Sampler(options, [1, 2, 3], stream).choose(scores.copy()) for stream in range(40)}
    assert all(expected[token] > 0 or nearly[token] > 0 for token in drawn)


def test_equal_seeds_repeat_and_streams_differ():
    options = GenerationOptions(do_sample=True, seed=11, top_k=0)

    def draw(stream):
        sampler = Sampler(options, [], stream)
        return [sampler.choose(logits(at)) for at in range(30)]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_without_a_seed_draws_differ():
    options = GenerationOptions(do_sample=True, top_k=0, temperature=5.0)
    first, second = Sampler(options, []), Sampler(options, [])
    assert [first.choose(logits(i)) for i in range(30)] != [second.choose(logits(i)) for i in range(30)]


def test_greedy_takes_the_first_of_the_largest():
    scores = np.array([1, 5, 5, 2], np.float32)
    assert Sampler(GenerationOptions(), []).choose(scores) == 1


def test_ties_at_the_edge_of_top_k_all_stay_as_in_transformers():
    scores = np.array([1, 5, 3, 3, 0], np.float32)
    options = GenerationOptions(do_sample=True, seed=0, top_k=2)
    drawn = {Sampler(options, [], stream).choose(scores.copy()) for stream in range(200)}
    assert drawn == {1, 2, 3} == set(np.flatnonzero(probabilities(scores, [0], options)))


def test_the_penalty_counts_prompt_and_answer_and_steers_greedy_too():
    options = GenerationOptions(repetition_penalty=2.0)
    scores = np.array([4, 3, -1, 1.9], np.float32)
    sampler = Sampler(options, [0])
    assert [sampler.choose(scores.copy()) for _ in range(4)] == [1, 0, 0, 0]
    only_negative = np.array([-1, -1.5, -2.1], np.float32)
    assert Sampler(options, [0]).choose(only_negative) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [GenerationOptions(), GenerationOptions(do_sample=True)])
def test_logits_that_are_not_numbers_are_an_error(bad, options):
    scores = logits()
    scores[17] = bad
    with pytest.raises(NumericalError, match="logits hold"):
        Sampler(options, []).choose(scores)
    with pytest.raises(NumericalError, match="logits hold -inf"):
        Sampler(options, []).choose(np.full(SIZE, -np.inf, np.float32))


def test_a_forbidden_token_is_no_error():
    scores = np.array([1, -np.inf, 0], np.float32)
    options = GenerationOptions(do_sample=True, seed=2, top_k=0)
    assert {Sampler(options, [], i).choose(scores.copy()) for i in range(100)} == {0, 2}
