"""What each drafter proposes, and how many of its guesses are verified."""

import time

import numpy as np
import pytest
from fake_models import TableState

from onnxforge.runtimes import GenerationOptions
from onnxforge.runtimes.draft_length import DraftLength
from onnxforge.runtimes.drafter import Draft
from onnxforge.runtimes.model_drafter import ModelDrafter
from onnxforge.runtimes.ngram_drafter import NgramDrafter
from onnxforge.runtimes.sampling import Sampler
from onnxforge.runtimes.seen_tokens import SeenTokens
from onnxforge.runtimes.step_cost import StepCost


def ngrams(*texts):
    drafter = NgramDrafter()
    for text in texts:
        drafter.read(text)
    return drafter


@pytest.mark.parametrize(
    ("text", "draft", "classes"),
    [
        ([1, 2, 3, 4, 5, 1, 2], (3, 4, 5), (2, 3, 4)),
        ([1, 2, 3, 9, 1, 2, 4, 8, 7, 1, 2], (4, 8, 7), (2, 3, 4)),  # the latest of two
        ([5, 1, 2, 3, 8, 1, 2, 4, 5, 1, 2], (3, 8, 1), (3, 4, 5)),  # the longest, though it is older
        ([7, 3, 3], (3, 3, 3), (1, 2, 3)),  # a repetition goes on
        ([1, 2, 1, 2, 1], (2, 1, 2), (3, 4, 5)),
        ([4, 5, 6, 5, 7, 5, 1], (5,), (0,)),  # 1 is new: 5 came behind most of the new ones
        ([4, 4, 6, 8], (8,), (0,)),  # as often as any other, and the latest
        ([4], (0,), (0,)),
    ],
)
def test_the_longest_then_latest_match_is_copied(text, draft, classes):
    assert ngrams(text).propose(3) == Draft(draft, classes)


def test_reading_by_pieces_is_reading_at_once():
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = rng.integers(0, 4, 60).tolist()
        cuts = sorted(rng.integers(0, 60, 5))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, 60], strict=True)]
        assert ngrams(*pieces).propose(6) == ngrams(text).propose(6)


def test_matches_are_those_of_a_search_through_the_text():
    rng = np.random.default_rng(1)
    for _ in range(200):
        text = rng.integers(0, 5, 40).tolist()
        longest = 0
        for n in range(4, 0, -1):
            places = [i for i in range(n, 40) if text[i - n : i] == text[-n:]]
            if places:
                longest = max(places)
                break
        first = ngrams(text).propose(1).tokens[0]
        if longest:
            assert first == text[longest]


def test_a_long_text_costs_no_more_per_token_than_a_short_one():
    """Twenty times the text, and a hundred times would be allowed if every step looked through all of it."""
    drafter = NgramDrafter()
    rng = np.random.default_rng(0)

    def seconds(steps=300):
        started = time.perf_counter()
        for _ in range(steps):
            drafter.read([int(rng.integers(0, 1000))])
            drafter.propose(8)
        return time.perf_counter() - started

    drafter.read(rng.integers(0, 1000, 1000).tolist())
    short = min(seconds() for _ in range(3))
    drafter.read(rng.integers(0, 1000, 100_000).tolist())
    assert min(seconds() for _ in range(3)) < 5 * short


def model_drafter(table, context=100, stop=(), **options):
    state = TableState(table)
    sampler = Sampler(GenerationOptions(**options), (), drafts=True)
    return state, ModelDrafter(state, context, table.shape[-1], sampler, stop)


CIRCLE = np.full((1, 6, 6), -9.0, np.float32)
CIRCLE[0, np.arange(6), (np.arange(6) + 1) % 6] = 9.0


def test_a_draft_model_reads_what_is_new_and_forgets_what_was_wrong():
    state, drafter = model_drafter(CIRCLE)
    drafter.read([0, 1, 2])
    assert drafter.propose(3).tokens == (3, 4, 5)
    assert state.text == [0, 1, 2, 3, 4]
    assert drafter.forward_passes == 3
    drafter.read([3, 1])  # one right, then another token
    assert drafter.propose(2).tokens == (2, 3)
    assert state.text == [0, 1, 2, 3, 1, 2]
    drafter.read([2, 3, 4])  # all right, and one more
    assert drafter.propose(2).tokens == (5, 0)
    assert state.text == [0, 1, 2, 3, 1, 2, 3, 4, 5]
    assert drafter.propose(2).tokens == (5, 0)  # asked again


def test_a_draft_ends_with_the_end_of_text_and_at_the_context():
    _, drafter = model_drafter(CIRCLE, stop=(4,))
    drafter.read([1, 2])
    assert drafter.propose(9).tokens == (3, 4)
    _, drafter = model_drafter(CIRCLE, context=5)
    drafter.read([1, 2])
    assert drafter.propose(9).tokens == (3, 4, 5)
    drafter.read([3, 4, 5])
    assert drafter.propose(9) == Draft()


def test_the_penalty_counts_drafted_tokens_until_they_are_refused():
    flat = np.zeros((1, 4, 4), np.float32) + np.array([4, 3, 2, 1], np.float32)
    _, drafter = model_drafter(flat, repetition_penalty=10.0)
    drafter.read([3])
    assert drafter.propose(4).tokens == (0, 1, 2, 0)
    assert drafter.propose(4).tokens == (0, 1, 2, 0)
    drafter.read([1])
    assert drafter.propose(2).tokens == (0, 2)


def test_classes_say_how_sure_the_draft_model_is_not_what_it_drew():
    flat = np.zeros((1, 3, 3), np.float32)
    _, drafter = model_drafter(flat, do_sample=True, seed=0)
    drafter.read([1])
    draft = drafter.propose(8)
    assert len(set(draft.tokens)) > 1
    assert set(draft.classes) == {4}  # 1/3 of 12
    assert [d.probability(2) for d in draft.distributions] == pytest.approx([1 / 3] * 8)


def test_a_measured_curve_is_followed_and_goes_on_in_a_line():
    cost = StepCost((1.0, 1.5, 1.6), 0.0, learns=True)
    assert [cost.of(rows) for rows in (1, 2, 3, 4, 6)] == pytest.approx([1.0, 1.5, 1.6, 1.9, 2.5])
    for _ in range(50):
        cost.step_took(1, 1.0)
    assert cost.of(3) == 1.6


def test_a_curve_that_falls_does_not_go_on_to_nothing():
    cost = StepCost((1.0, 0.8, 0.6, 0.4), 0.0, learns=True)
    assert cost.verifying(5) == cost.verifying(31) == 0.4
    cost.step_took(5, 0.1)


def test_without_a_curve_the_cost_is_learned_from_the_steps():
    cost = StepCost((), 0.5, learns=True)
    rng = np.random.default_rng(0)
    for _ in range(60):
        rows = 2 * int(rng.integers(1, 6))
        cost.step_took(
            rows - 1, (2 + 0.5 * rows) * rng.uniform(0.95, 1.05) * (10 if rng.random() < 0.03 else 1)
        )
        cost.draft_took(4, 4 * 0.25)
    assert cost.of(9) == pytest.approx(6.5 / 2.5, rel=0.2)
    assert cost.draft == pytest.approx(0.25 / 2.5, rel=0.3)


def test_nothing_is_learned_from_the_clock_when_told_so():
    cost = StepCost((), 0.5, learns=False)
    before = [cost.of(rows) for rows in range(1, 9)]
    for rows in range(2, 9):
        cost.step_took(rows, rows * 10.0)
        cost.draft_took(4, 100.0)
    assert [cost.of(rows) for rows in range(1, 9)] == before
    assert cost.draft == 0.5


def run(length, draft, accepted, steps):
    for _ in range(steps):
        kept = length.worthwhile(draft)
        right = min(accepted, len(kept))
        length.learn(kept, right, min(right + 1, len(kept)), right + 1)
    return len(length.worthwhile(draft))


def test_drafts_grow_while_they_are_right_and_shrink_to_the_free_guess_when_not():
    length = DraftLength(8, StepCost((), 0.0, learns=False), (0.5,))
    draft = Draft(tuple(range(8)), (0,) * 8)
    assert length.wanted(20) == 8
    assert length.wanted(3) == 3
    assert length.wanted(0) == 0
    assert run(length, draft, 8, 40) == 8
    assert run(length, draft, 0, 60) == 1
    assert run(length, draft, 8, 60) == 8, "the free guess finds out that drafting pays again"


def test_sure_guesses_are_verified_further_than_unsure_ones():
    length = DraftLength(8, StepCost((), 0.0, learns=False), (0.1, 0.95))
    assert len(length.worthwhile(Draft(tuple(range(8)), (1,) * 8))) == 8
    assert len(length.worthwhile(Draft(tuple(range(8)), (1, 1, 1, 0, 1, 1, 1, 1)))) == 3
    assert len(length.worthwhile(Draft(tuple(range(8)), (0,) * 8))) == 1


def test_a_step_in_the_curve_is_climbed_when_what_lies_behind_is_cheap():
    curve = (1.0, 1.1, 1.1, 1.1, 2.5, 2.5, 2.5, 2.5)
    sure = DraftLength(7, StepCost(curve, 0.0, learns=False), (0.97,))
    unsure = DraftLength(7, StepCost(curve, 0.0, learns=False), (0.6,))
    draft = Draft(tuple(range(7)), (0,) * 7)
    assert len(sure.worthwhile(draft)) == 7
    assert len(unsure.worthwhile(draft)) == 3


def test_a_drafter_that_costs_too_much_is_left_alone_and_tried_again():
    length = DraftLength(8, StepCost((), 1.5, learns=False), (0.5,))
    asked = []
    for _ in range(100):
        count = length.wanted(50)
        asked.append(count)
        if count:
            length.learn(Draft((1,) * count, (0,) * count), 0, 1, 1)
        else:
            length.learn_plain(1)
    tries = np.flatnonzero(asked)
    assert 3 <= len(tries) <= 12
    assert np.diff(tries).max() == 16


def test_seen_tokens_go_back_to_a_mark():
    seen = SeenTokens([3, 1, 3])
    assert seen.ids.tolist() == [3, 1]
    mark = len(seen)
    seen.add(range(200))
    assert len(seen) == 200
    seen.back_to(mark)
    assert seen.ids.tolist() == [3, 1]
    seen.add([7, 1])
    assert seen.ids.tolist() == [3, 1, 7]
