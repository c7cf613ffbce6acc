"""Whatever is drafted, drawn answers follow the model's own distribution; chi-square over whole answers."""

import itertools

import numpy as np
import pytest
from fake_models import Scripted, SkimState, TableState, Whole, speculate

from onnxforge.runtimes import GenerationOptions
from onnxforge.runtimes.distribution import Distribution
from onnxforge.runtimes.drafter import Draft
from onnxforge.runtimes.layer_skip_drafter import LayerSkipDrafter
from onnxforge.runtimes.model_drafter import ModelDrafter
from onnxforge.runtimes.sampling import Sampler

SIZE, NEW, DRAWS, PROMPT = 3, 4, 1200, [1]


def table(seed):
    return (np.random.default_rng(seed).standard_normal((9, SIZE, SIZE)) * 1.2).astype(np.float32)


MODEL = table(0)


def expected(options):
    """The probability of every answer, by the definition: token after token."""
    found = {}
    for answer in itertools.product(range(SIZE), repeat=NEW):
        probability, text = 1.0, list(PROMPT)
        for token in answer:
            sampler = Sampler(options, text)
            logits = MODEL[(len(text) - 1) % len(MODEL), text[-1]].copy()
            sampler._best(logits)
            probability *= sampler._distribution(logits).probability(token)
            text.append(token)
        found[answer] = probability
    return found


def drafter(kind, options, seed, state=None):
    rng = np.random.default_rng(seed)
    if kind == "certain":
        return Scripted(
            lambda text, count: [int(t) for t in np.resize(text[-1] + np.arange(1, 5), count) % SIZE]
        )
    if kind == "random":
        return Scripted(lambda _, count: rng.integers(0, SIZE, count).tolist())
    tables = {"itself": MODEL, "good": MODEL + 0.5 * table(1), "adversarial": -2 * MODEL}
    sampler = Sampler(GenerationOptions(**{**options_of(options), "seed": seed}), (), drafts=True)
    if kind == "layer skip":
        return LayerSkipDrafter(state, 10**6, SIZE, sampler, ())
    return ModelDrafter(TableState(tables[kind]), 10**6, SIZE, sampler, ())


def options_of(options):
    names = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
    return {name: getattr(options, name) for name in names}


CASES = [{"top_k": 0}, {"temperature": 0.8, "top_p": 0.97, "repetition_penalty": 5.0}]
TOP_K = {"top_k": 2, "temperature": 1.5, "repetition_penalty": 1.6}
RUNS = [
    *((case, kind, "all") for case in CASES for kind in ("certain", "good", "adversarial", "layer skip")),
    (TOP_K, "random", "all"),
    (TOP_K, "good", "all"),
    (CASES[0], "itself", "adaptive"),
    *((case, "good", "adaptive") for case in CASES),
]


@pytest.mark.parametrize(("case", "kind", "length"), RUNS, ids=str)
def test_answers_follow_the_models_distribution(case, kind, length):
    wanted = expected(GenerationOptions(do_sample=True, **case))
    counts = dict.fromkeys(wanted, 0)
    accepted = 0
    for seed in range(DRAWS):
        options = GenerationOptions(do_sample=True, seed=seed, **case)
        state = SkimState(MODEL, MODEL + 0.5 * table(1))
        loop, answer = speculate(
            state,
            PROMPT,
            options,
            drafter(kind, options, seed + DRAWS, state),
            NEW,
            length=Whole(3) if length == "all" else None,
        )
        for _ in loop.steps():
            pass
        counts[tuple(answer.tokens)] += 1
        accepted += loop.stats(0).speculative.draft_tokens_accepted
    assert accepted > 0.1 * DRAWS, "nothing was tested"
    assert all(wanted[answer] > 0 for answer, count in counts.items() if count)
    assert statistic_is_usual(np.array(list(counts.values())), np.array(list(wanted.values())))


def statistic_is_usual(counts, probabilities):
    """Chi-square within mean + 5 standard deviations; rare answers are counted together."""
    meant = probabilities * counts.sum()
    rare = meant < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    meant = np.append(meant[~rare], meant[rare].sum())
    counts, meant = counts[meant > 0], meant[meant > 0]
    statistic = ((counts - meant) ** 2 / meant).sum()
    return statistic < (freedom := len(meant) - 1) + 5 * np.sqrt(2 * freedom)


def test_the_chi_square_sees_a_wrong_rule():
    """Accepting every draft draws from the draft's distribution: the test above must be able to fail."""
    probabilities = np.array([0.5, 0.3, 0.2])
    drawn = np.random.default_rng(0).choice(3, DRAWS, p=[0.4, 0.35, 0.25])
    assert not statistic_is_usual(np.bincount(drawn), probabilities)
    drawn = np.random.default_rng(0).choice(3, DRAWS, p=probabilities)
    assert statistic_is_usual(np.bincount(drawn), probabilities)


def test_a_draft_from_the_model_itself_is_always_accepted():
    options = GenerationOptions(do_sample=True, seed=1, top_k=0, repetition_penalty=1.3)
    loop, _ = speculate(
        TableState(MODEL), PROMPT, options, drafter("itself", options, 5), 60, length=Whole(3)
    )
    for _ in loop.steps():
        pass
    stats = loop.stats(0).speculative
    assert stats.acceptance_rate == 1.0
    assert stats.rounds == 15  # 59 tokens after the first, four a step
    assert stats.draft_forward_passes == stats.draft_tokens_proposed == 44


def test_acceptance_is_what_the_two_distributions_have_in_common():
    """Leviathan et al., corollary 3.6: the sum of min(p, q)."""
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    options = GenerationOptions(do_sample=True, seed=0, top_k=0)
    sampler, rng = Sampler(options, ()), np.random.default_rng(1)
    logits, source = np.log(p).astype(np.float32), Distribution(np.arange(3), q)
    accepted = 0
    for _ in range(DRAWS):
        drafted = int(rng.choice(3, p=q))
        accepted += sampler.verify(logits.copy(), drafted, source) == drafted
    assert accepted / DRAWS == pytest.approx(np.minimum(p, q).sum(), abs=0.03)


@pytest.mark.parametrize("kind", ["certain", "random"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_with_certain_drafts_a_seed_gives_the_tokens_of_plain_sampling(case, kind):
    options = GenerationOptions(do_sample=True, seed=3, **case)
    answers = set()
    for seed in range(6):
        fill = drafter(kind, options, seed)
        loop, answer = speculate(TableState(MODEL), PROMPT, options, fill, 40, most=1 + seed)
        for _ in loop.steps():
            pass
        answers.add(tuple(answer.tokens))
    never, plain = speculate(TableState(MODEL), PROMPT, options, Scripted(lambda *_: []), 40)
    for _ in never.steps():
        pass
    assert never.stats(0).speculative.draft_tokens_proposed == 0
    assert answers == {tuple(plain.tokens)}


def test_what_a_distribution_has_above_another():
    p = Distribution(np.array([4, 1, 7]), np.array([2.0, 1.0, 1.0]))
    q = Distribution(np.array([9, 4]), np.array([3.0, 1.0]))
    above = p.above(q)
    assert above.ids.tolist() == [4, 1, 7]
    assert above.weights.tolist() == [0.25, 0.25, 0.25]
    assert p.above(p).weights.tolist() == p.weights.tolist()
    assert (p.probability(4), p.probability(5)) == (0.5, 0.0)
    assert [p.draw(u) for u in (0.0, 0.49, 0.5, 0.99, 1.0)] == [4, 4, 1, 7, 7]


def test_a_drawn_draft_is_not_cut_for_what_comes_later():
    """Whether a guess is verified may hang on what came before it, never on itself or what it leads to."""
    from onnxforge.runtimes.draft_length import DraftLength
    from onnxforge.runtimes.step_cost import StepCost

    length = DraftLength(3, StepCost((), 0.3, learns=False), (0.01, 0.99))
    source = (Distribution(np.arange(2), np.ones(2)),) * 3
    for later in ((0, 0), (1, 1), (0, 1)):
        assert len(length.worthwhile(Draft((0, 0, 0), (0, *later), source))) == 1
    assert len(length.worthwhile(Draft((0, 0, 0), (1, 0, 1), source))) == 1
    assert len(length.worthwhile(Draft((0, 0, 0), (1, 1, 1), source))) == 3
