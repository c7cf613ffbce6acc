"""The rule that switches speculation on or off, and the choice of the draft length.

The price of drafting is paid on every step: a step reads two rows at least, also where nothing is drafted,
so the comparison is with plain decoding by ONE row. On is the default only where that costs open text next to
nothing and text that copies gains; a length asked for is taken as it is, with its numbers beside it.
"""

import math
from collections.abc import Mapping, Sequence

from onnxforge.compiler.speculation_types import Forecast, SampleRun, measured_speed
from onnxforge.compiler.step_costs import RowConsistency
from onnxforge.runtimes.speculation import DRAFT_MODEL, LAYER_SKIP, USUAL_DRAFT_TOKENS, DrafterName

LEAST_OPEN = 0.97
"""Open text must keep this share of its speed: what is below is more than the noise of a few rounds."""
LEAST_GROUNDED = 1.05
"""And grounded text must gain more than the noise."""
LEAST_GAIN = 1.03
"""What another way to draft has to gain over n-grams alone, by the geometric mean of both classes: more than
noise."""
_CALLED: Mapping[DrafterName, str] = {LAYER_SKIP: "layer skip", DRAFT_MODEL: "the draft model"}
_AS_GOOD = 0.98


def best_length(forecasts: Sequence[Forecast]) -> int:
    """The draft length with the best expected speeds; 0 where there is no forecast.

    Best is the largest geometric mean of both classes, among the lengths that are not expected to slow open
    text down, or among all if every one is. ``USUAL_DRAFT_TOKENS`` is taken where it is nearly as good: the
    choice is not a fine one, because the runtime verifies no more of a draft than is worth its time.
    """
    if not forecasts:
        return 0
    kept = [f for f in forecasts if f.open.speed >= LEAST_OPEN] or forecasts
    worth = {f.draft_tokens: math.sqrt(f.grounded.speed * f.open.speed) for f in kept}
    best = max(worth, key=lambda length: (worth[length], -length))
    return USUAL_DRAFT_TOKENS if worth.get(USUAL_DRAFT_TOKENS, 0.0) >= _AS_GOOD * worth[best] else best


def decide(
    rows: RowConsistency, forecast: Forecast | None, samples: tuple[SampleRun, ...], asked: int | None
) -> tuple[bool, str]:
    """Whether speculation is on by default, and the sentence that says why.

    ``asked`` is a draft length that the user gave, None to decide by what was measured.
    """
    if not rows.is_exact:
        return False, (
            f"steps of 2 and of more rows, even ones, differ by up to {rows.even_rows:.2g} in a logit, so "
            "that drafts could change the text"
        )
    grounded, plain = measured_speed(samples, True), measured_speed(samples, False)
    if forecast is None or grounded is None or plain is None:
        return asked is not None, "the sample prompts gave nothing to measure (short context or no tokenizer)"
    found = (
        f"grounded text {_both(grounded, forecast.grounded.speed)}, open text "
        f"{_both(plain, forecast.open.speed)} of one-row decoding"
    )
    if asked is not None:
        return True, f"asked for with --speculation {asked}: {found}"
    if min(plain, forecast.open.speed) < LEAST_OPEN:
        return False, f"it would slow open text down: {found} (at least {LEAST_OPEN:.2f}x is wanted)"
    if min(grounded, forecast.grounded.speed) < LEAST_GROUNDED:
        return False, f"it would not pay: {found} (at least {LEAST_GROUNDED:.2f}x on grounded text is wanted)"
    return True, found


def prefers(
    drafter: DrafterName,
    is_equal: bool,
    found: tuple[SampleRun, ...],
    before: tuple[SampleRun, ...],
    enabled: bool,
) -> tuple[bool, str]:
    """Whether requests draft by ``drafter`` (and n-grams where those match) instead of as ``before``.

    ``enabled`` tells whether what was before pays: then ``drafter`` has to be faster, and otherwise it has to
    pay itself. ``is_equal``: the graph that verifies its drafts is the plain one, bit for bit.
    """
    name = _CALLED[drafter]
    if not is_equal:
        return False, (
            f"{name} is not the default: the graph that verifies its drafts rounds otherwise than the plain "
            "one, so that its text may be another"
        )
    speeds = [(measured_speed(found, side), measured_speed(before, side)) for side in (True, False)]
    (grounded, grounded_before), (plain, plain_before) = speeds
    if grounded is None or plain is None or grounded_before is None or plain_before is None:
        return False, f"{name} is not the default: the sample prompts gave nothing to measure"
    said = (
        f"grounded text {grounded:.2f}x of one-row decoding, {grounded_before:.2f}x without it; open "
        f"text {plain:.2f}x and {plain_before:.2f}x"
    )
    paid = grounded_before * plain_before if enabled else 1.0
    pays = plain >= LEAST_OPEN and grounded >= LEAST_GROUNDED
    if pays and math.sqrt(grounded * plain / paid) >= LEAST_GAIN:
        return True, f"{name} is the default: {said}"
    return False, f"{name} is not the default, it does not pay: {said}"


def _both(measured: float, predicted: float) -> str:
    return f"{measured:.2f}x measured and {predicted:.2f}x predicted"
