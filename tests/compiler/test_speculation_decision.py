"""Costs, replay, forecast and the rule, on numbers that a reader can check."""

import dataclasses

import pytest

from onnxforge.compiler.proof_speculation import as_default, complaint
from onnxforge.compiler.sample_prompts import SAMPLE_PROMPTS
from onnxforge.compiler.speculation_decision import LEAST_OPEN, best_length, decide, prefers
from onnxforge.compiler.speculation_replay import KnownAnswer, forecasts, replay, runtime_curve
from onnxforge.compiler.speculation_types import (
    ClassForecast,
    Forecast,
    SampleRun,
    SpeculationReport,
    measured_speed,
)
from onnxforge.compiler.step_costs import RowConsistency, StepCosts, cost_of, rising
from onnxforge.runtimes.speculation import LAYER_SKIP, USUAL_DRAFT_TOKENS

EXACT = RowConsistency(140, 0.0, 0.7, 1.3, 2, 32)
CHEAP = (StepCosts(64, tuple(1.0 + 0.1 * k for k in range(16))),)
"""Each further row adds a tenth of a step."""
DEAR = (StepCosts(64, tuple(1.0 + 0.9 * k for k in range(16))),)


def sample(name: str, grounded: bool, plain: float, drafted: float, tokens: int = 11) -> SampleRun:
    return SampleRun(name, grounded, 50, tokens, 20, 5, 6, drafted, plain, True)


def forecast(length: int, grounded: float, plain: float) -> Forecast:
    return Forecast(length, ClassForecast(2.0, 3.0, grounded), ClassForecast(1.2, 2.2, plain))


def test_costs_lie_between_the_contexts_and_go_on_beyond_the_rows():
    costs = (StepCosts(100, (1.0, 2.0, 3.0)), StepCosts(300, (2.0, 4.0, 6.0)))
    assert cost_of(costs, 2, 200) == pytest.approx(3.0)
    assert cost_of(costs, 1, 0) == 1.0
    assert cost_of(costs, 3, 9999) == 6.0
    assert cost_of(costs, 5, 100) == pytest.approx(5.0)
    assert costs[1].ratios == (1.0, 2.0, 3.0)
    assert runtime_curve(costs) == (1.0, 2.0, 3.0)


def test_a_curve_that_falls_is_averaged_until_it_does_not():
    assert rising([1.0, 2.0, 3.0]) == (1.0, 2.0, 3.0)
    assert rising([1.0, 3.0, 2.0, 4.0]) == (1.0, 2.5, 2.5, 4.0)
    assert rising([3.0, 2.0, 1.0]) == (2.0, 2.0, 2.0)


def test_an_answer_that_copies_its_prompt_takes_few_steps():
    text = tuple(range(100, 140))
    found = replay(KnownAnswer("copy", True, text + text[:4], text[4:36]), CHEAP, 8)
    assert found.tokens == 31
    assert found.steps <= 6
    assert found.rows <= 9 * found.steps
    assert found.plain_seconds == pytest.approx(31 * 1.0)
    assert found.seconds < found.plain_seconds / 2


def test_an_answer_without_any_repetition_pays_for_the_second_row():
    found = replay(KnownAnswer("new", False, tuple(range(100, 120)), tuple(range(500, 540))), CHEAP, 8)
    assert (found.tokens, found.steps, found.rows) == (39, 39, 78)
    assert found.seconds == pytest.approx(39 * 1.1)


def test_the_replay_is_what_the_runtime_would_have_done():
    """By its own drafter and its own choice: dear rows are not verified, cheap ones are."""
    text = tuple(range(100, 140))
    known = KnownAnswer("copy", True, text + text[:1], text[1:30])
    assert replay(known, CHEAP, 8).rows / replay(known, CHEAP, 8).steps > 4
    assert replay(known, DEAR, 8).rows / replay(known, DEAR, 8).steps < 3.5


def test_a_forecast_needs_both_kinds_of_text():
    text = tuple(range(100, 140))
    copy = KnownAnswer("copy", True, text + text[:4], text[4:36])
    new = KnownAnswer("new", False, text, tuple(range(500, 540)))
    (found,) = forecasts([copy, new], CHEAP, [8])
    assert found.grounded.speed > 2 > 1 > found.open.speed == pytest.approx(1 / 1.1)
    assert found.open.tokens_per_step == 1.0
    assert found.open.rows_per_step == 2.0
    assert forecasts([copy], CHEAP, [8]) == ()
    assert forecasts([copy, dataclasses.replace(new, answer=(500,))], CHEAP, [8]) == ()


def test_the_best_length_does_not_slow_open_text_down():
    assert best_length([]) == 0
    assert best_length([forecast(1, 1.2, 1.0), forecast(15, 3.0, 0.9)]) == 1
    assert best_length([forecast(1, 1.2, 0.8), forecast(15, 3.0, 0.7)]) == 15
    assert best_length([forecast(1, 1.2, 1.0), forecast(2, 1.2, 1.0)]) == 1
    assert (
        best_length([forecast(USUAL_DRAFT_TOKENS, 1.99, 1.0), forecast(15, 2.0, 1.0)]) == USUAL_DRAFT_TOKENS
    )


def test_measured_speed_is_of_all_tokens_over_all_time():
    samples = (sample("a", True, 10.0, 20.0), sample("b", True, 10.0, 10.0, tokens=21))
    assert measured_speed(samples, True) == pytest.approx((1 + 2) / (0.5 + 2))
    assert measured_speed(samples, False) is None
    assert measured_speed((sample("c", True, 10.0, 10.0, tokens=1),), True) is None


def judged(grounded: float, plain: float, **other: object) -> tuple[bool, str]:
    samples = (sample("g", True, 10.0, 10.0 * grounded), sample("o", False, 10.0, 10.0 * plain))
    asked = {"rows": EXACT, "forecast": forecast(8, 2.0, 1.1), "samples": samples, "asked": None}
    return decide(**(asked | other))


@pytest.mark.parametrize(
    ("grounded", "plain", "expected", "on", "because"),
    [
        (2.0, 1.05, forecast(8, 2.0, 1.1), True, "2.00x measured"),
        (2.0, LEAST_OPEN + 0.001, forecast(8, 2.0, 1.1), True, "open text 0.97x"),
        (2.0, LEAST_OPEN - 0.01, forecast(8, 2.0, 1.1), False, "slow open text down"),
        (2.0, 1.05, forecast(8, 2.0, 0.9), False, "0.90x predicted"),
        (1.01, 1.05, forecast(8, 2.0, 1.1), False, "would not pay"),
        (2.0, 1.05, forecast(8, 1.01, 1.1), False, "would not pay"),
    ],
)
def test_on_only_where_forecast_and_measurement_agree(grounded, plain, expected, on, because):
    enabled, reason = judged(grounded, plain, forecast=expected)
    assert enabled is on
    assert because in reason


def runs(grounded: float, plain: float) -> tuple[SampleRun, ...]:
    return (sample("g", True, 10.0, 10.0 * grounded), sample("o", False, 10.0, 10.0 * plain))


@pytest.mark.parametrize(
    ("skipping", "ngrams", "enabled", "chosen"),
    [
        ((2.3, 1.2), (2.0, 1.0), True, True),
        ((2.0, 1.01), (2.0, 1.0), True, False),
        ((3.0, LEAST_OPEN - 0.01), (2.0, 1.0), True, False),
        ((1.2, 1.2), (1.0, 0.9), False, True),
        ((1.02, 1.2), (1.0, 0.9), False, False),
    ],
)
def test_layer_skip_has_to_beat_what_costs_nothing(skipping, ngrams, enabled, chosen):
    found, reason = prefers(LAYER_SKIP, True, runs(*skipping), runs(*ngrams), enabled)
    assert found is chosen
    assert f"grounded text {skipping[0]:.2f}x" in reason


def test_layer_skip_needs_equal_numbers_and_samples():
    assert "rounds otherwise" in prefers(LAYER_SKIP, False, runs(9, 9), runs(1, 1), True)[1]
    assert "nothing to measure" in prefers(LAYER_SKIP, True, (), runs(1, 1), True)[1]


def test_what_was_asked_for_is_done_and_its_price_said():
    enabled, reason = judged(0.8, 0.7, asked=8)
    assert enabled
    assert "--speculation 8" in reason
    assert "0.70x measured" in reason


def test_rows_that_depend_on_one_another_forbid_it_even_when_asked():
    torn = dataclasses.replace(EXACT, even_rows=1e-6)
    for asked in (None, 8):
        enabled, reason = judged(2.0, 1.1, rows=torn, asked=asked)
        assert not enabled
        assert "could change the text" in reason


def test_nothing_measured_is_no_reason_to_switch_on():
    assert judged(2.0, 1.1, forecast=None, samples=())[0] is False


def report(**changes: object) -> SpeculationReport:
    base = SpeculationReport(CHEAP, EXACT, (), (), 8, False, True, "it pays", 1.0)
    return dataclasses.replace(base, **changes)


def test_the_artifact_gets_the_decision_with_its_curve():
    found = as_default(report())
    assert found is not None
    assert (found.enabled, found.max_draft_tokens, found.min_rows) == (True, 8, 2)
    assert found.step_cost[:3] == (1.0, 1.1, 1.2)
    off = as_default(report(enabled=False, reason="no"))
    assert off is not None
    assert (off.enabled, off.min_rows, off.reason) == (False, 1, "no")
    assert as_default(None) is None


def test_a_promise_that_drafts_cannot_keep_is_a_missed_one():
    torn = dataclasses.replace(EXACT, even_rows=0.5)
    assert complaint(report()) == ""
    assert complaint(report(rows=torn)) == "", "nobody asked for drafts"
    assert "no token" in complaint(report(rows=torn, asked=True))


def test_grounded_sample_prompts_bring_their_text_and_open_ones_do_not():
    kinds = [prompt.grounded for prompt in SAMPLE_PROMPTS]
    assert min(kinds.count(True), kinds.count(False)) >= 4
    assert len({prompt.name for prompt in SAMPLE_PROMPTS}) == len(SAMPLE_PROMPTS)
    assert all(("\n\n" in prompt.text) is prompt.grounded for prompt in SAMPLE_PROMPTS)
