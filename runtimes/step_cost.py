"""What a step of several rows costs, in units of a step of one row."""

from collections.abc import Sequence

from onnxforge.runtimes.speculation import verifying_rows

_SLOPE = 0.1
"""What each further row adds while nothing was measured; 0.07 to 0.2 on CPUs for models of 0.1B."""
_FORGET = 0.95
_OUTLIER = 2.0
_MOST_DRAFT = 3.0


def along(curve: Sequence[float], rows: int) -> float:
    """The cost of `rows` rows by those of 1, 2, 3, ...; beyond its end it goes on as on average, not down."""
    beyond = max(rows - len(curve), 0)
    slope = max(curve[-1] - curve[0], 0.0) / (len(curve) - 1)
    return curve[min(rows, len(curve)) - 1] + slope * beyond


class StepCost:
    """The time of a step over that of one row, from a measured curve or from the steps themselves.

    Without a curve it is a straight line through the steps' times, older ones forgotten. With
    ``learns=False`` nothing is taken from the clock, and what is decided by these numbers repeats itself.
    """

    def __init__(self, curve: Sequence[float], draft_cost: float, learns: bool) -> None:
        """`curve`: times of 1, 2, 3, ... rows over that of 1 row; empty when nobody measured it.

        `draft_cost`: the drafter's own time per guess in the same unit, until it was observed.
        """
        self._curve = tuple(curve)
        self._learns = learns
        self._draft = draft_cost
        self._unit: float | None = None
        """Seconds of one row."""
        self._slope = _SLOPE
        self._sums = [0.0] * 5

    @property
    def draft(self) -> float:
        """Time per guess."""
        return self._draft

    def of(self, rows: int) -> float:
        """Time of a step of `rows`; a curve goes on beyond its end as it does on average."""
        if len(self._curve) < 2:
            return 1.0 + self._slope * (rows - 1)
        return along(self._curve, rows)

    def verifying(self, drafted: int) -> float:
        """Time of a step that verifies so many drafted tokens."""
        return self.of(verifying_rows(drafted))

    def step_took(self, drafted: int, seconds: float) -> None:
        """Learn from a step that verified `drafted` tokens; one that took far too long counts little."""
        if not self._learns:
            return
        rows = verifying_rows(drafted)
        one = seconds / self.of(rows)
        usual = self._unit is None or one < _OUTLIER * self._unit
        if self._unit is not None and not usual:
            one = _OUTLIER * self._unit
        self._unit = one if self._unit is None else _FORGET * self._unit + (1 - _FORGET) * one
        if usual and len(self._curve) < 2:
            self._fit(rows, seconds)

    def draft_took(self, guesses: int, seconds: float) -> None:
        """Learn from a draft of `guesses` tokens."""
        if self._learns and guesses and self._unit is not None:
            measured = seconds / guesses / self._unit
            self._draft = _FORGET * self._draft + (1 - _FORGET) * min(measured, _MOST_DRAFT)

    def _fit(self, rows: int, seconds: float) -> None:
        """Least squares of seconds = a + b * rows, older steps weighing less (Young 1984, recursive form)."""
        new = (1.0, rows, rows * rows, seconds, rows * seconds)
        self._sums = [_FORGET * old + value for old, value in zip(self._sums, new, strict=True)]
        n, x, xx, y, xy = self._sums
        spread = n * xx - x * x
        if spread < n:  # all steps of about one length say nothing about the slope
            return
        slope = (n * xy - x * y) / spread
        one = (y - slope * x) / n + slope
        if one > 0:
            self._slope = min(max(slope / one, 0.0), 1.0)
