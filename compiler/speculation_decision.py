"""The rule that switches speculation on or off, and the choice of the draft length.

The price of drafting is paid on every step: a step reads two rows at least, also where nothing is drafted,
so the comparison is with plain decoding by ONE row. On is the default only where that costs open text next to
nothing and text that copies gains; a length asked for is taken as it is, with its numbers beside it.
"""

import math
from collections.abc import Sequence

from onnxforge.compiler.speculation_types import Forecast, SampleRun, measured_speed
from onnxforge.compiler.step_costs import RowConsistency
from onnxforge.runtimes.speculation import USUAL_DRAFT_TOKENS

LEAST_OPEN = 0.97
"""Open text must keep this share of its speed: what is below is more than the noise of a few rounds."""
LEAST_GROUNDED = 1.05
"""And grounded text must gain more than the noise."""
LEAST_LAYER_SKIP = 1.03
"""What layer skip has to gain over n-grams alone, by the geometric mean of both classes: more than noise."""
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


def prefers_layer_skip(
    is_equal: bool, skipping: tuple[SampleRun, ...], ngrams: tuple[SampleRun, ...], enabled: bool
) -> tuple[bool, str]:
    """Whether requests draft with layers left out (and n-grams where those match) instead of n-grams alone.

    ``enabled`` tells whether n-grams alone pay: then layer skip has to be faster than they are, and otherwise
    it has to pay itself.
    """
    if not is_equal:
        return False, (
            "layer skip is not the default: the graph that can leave layers out rounds otherwise than the "
            "plain one, so that its text may be another"
        )
    speeds = [(measured_speed(skipping, side), measured_speed(ngrams, side)) for side in (True, False)]
    (grounded, grounded_before), (plain, plain_before) = speeds
    if grounded is None or plain is None or grounded_before is None or plain_before is None:
        return False, "layer skip is not the default: the sample prompts gave nothing to measure"
    found = (
        f"grounded text {grounded:.2f}x of one-row decoding, {grounded_before:.2f}x with n-grams alone; open "
        f"text {plain:.2f}x and {plain_before:.2f}x"
    )
    before = grounded_before * plain_before if enabled else 1.0
    pays = plain >= LEAST_OPEN and grounded >= LEAST_GROUNDED
    if pays and math.sqrt(grounded * plain / before) >= LEAST_LAYER_SKIP:
        return True, f"layer skip is the default: {found}"
    return False, f"layer skip is not the default, it does not pay: {found}"


def _both(measured: float, predicted: float) -> str:
    return f"{measured:.2f}x measured and {predicted:.2f}x predicted"
