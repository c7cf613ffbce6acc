"""What drafting would have done on a known answer, and what that would have cost.

Greedy text does not depend on drafts, so one answer tells what any draft length would have done, without
running the model again: the runtime's own drafter and its own choice of how much to verify walk through it,
every step emits the guesses that match and one token more, and costs what steps of so many rows were measured
to cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from onnxforge.compiler.speculation_types import ClassForecast, Forecast
from onnxforge.compiler.step_costs import StepCosts, cost_of
from onnxforge.runtimes.draft_length import DraftLength
from onnxforge.runtimes.drafter import Draft
from onnxforge.runtimes.ngram_drafter import NgramDrafter
from onnxforge.runtimes.speculation import verifying_rows
from onnxforge.runtimes.step_cost import StepCost


@dataclass(frozen=True)
class KnownAnswer:
    """A prompt and the tokens that greedy decoding with several rows a step gives for it."""

    name: str
    grounded: bool
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Replay:
    """One answer at one draft length."""

    tokens: int
    """Emitted after the first, which comes from the prompt's run."""
    steps: int
    rows: int
    """Read by all steps together."""
    seconds: float
    plain_seconds: float
    """For as many steps of one row."""


def forecasts(
    answers: Sequence[KnownAnswer], costs: Sequence[StepCosts], lengths: Sequence[int]
) -> tuple[Forecast, ...]:
    """What each of ``lengths`` would do on the grounded and on the open ones of ``answers``."""
    found = []
    for length in lengths:
        replays = [(known.grounded, replay(known, costs, length)) for known in answers]
        sides = [_pooled([r for grounded, r in replays if grounded is side]) for side in (True, False)]
        if sides[0] is not None and sides[1] is not None:
            found.append(Forecast(length, sides[0], sides[1]))
    return tuple(found)


def replay(known: KnownAnswer, costs: Sequence[StepCosts], length: int) -> Replay:
    """Walk through an answer in steps that draft at most ``length`` tokens."""
    drafter, answer = NgramDrafter(), known.answer
    curve = StepCost(runtime_curve(costs), drafter.cost, learns=False)
    width = DraftLength(length, curve, drafter.prior)
    drafter.read([*known.prompt, *answer[:1]])
    done, steps, rows_read, seconds, plain = 1, 0, 0, 0.0, 0.0
    while done < len(answer):
        room = len(answer) - done - 1
        draft = width.worthwhile(drafter.propose(width.wanted(room))) if room else Draft()
        accepted = _right(draft, answer[done:])
        emitted = accepted + 1
        width.learn(draft, accepted, min(accepted + 1, len(draft)), emitted)
        drafter.read(answer[done : done + emitted])
        context, rows = len(known.prompt) + done, verifying_rows(len(draft))
        seconds += cost_of(costs, rows, context)
        plain += emitted * cost_of(costs, 1, context)
        done, steps, rows_read = done + emitted, steps + 1, rows_read + rows
    return Replay(max(len(answer) - 1, 0), steps, rows_read, seconds, plain)


def runtime_curve(costs: Sequence[StepCosts]) -> tuple[float, ...]:
    """The one curve that requests go by: that of the longest context, over its step of one row."""
    longest = max(costs, key=lambda cost: cost.context)
    return tuple(round(ratio, 4) for ratio in longest.ratios)


def _right(draft: Draft, following: Sequence[int]) -> int:
    """How many of the drafted tokens are those that follow, from the first on."""
    pairs = enumerate(zip(draft.tokens, following, strict=False))
    return next((place for place, (guess, truth) in pairs if guess != truth), len(draft))


def _pooled(replays: Sequence[Replay]) -> ClassForecast | None:
    steps = sum(r.steps for r in replays)
    if not steps:
        return None
    return ClassForecast(
        tokens_per_step=sum(r.tokens for r in replays) / steps,
        rows_per_step=sum(r.rows for r in replays) / steps,
        speed=sum(r.plain_seconds for r in replays) / sum(r.seconds for r in replays),
    )
