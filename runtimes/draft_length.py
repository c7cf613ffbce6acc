"""How many tokens to draft, and how many of a draft to verify: as many as are worth their time.

A row that is verified costs time whether its guess is right or not. It is worth that time when the chance
that all guesses up to it are right exceeds the tokens that the time would bring elsewhere:

    P(guess 1..j right) > tokens per time so far * (cost(j + 1 rows) - cost(j rows))

Summed up over j, the best draft is the longest prefix with the largest  E[tokens] - rate * cost.
"""

from onnxforge.runtimes.drafter import MOST_CLASSES, Draft
from onnxforge.runtimes.speculation import ROWS
from onnxforge.runtimes.step_cost import StepCost

_PRIOR_WEIGHT = 4.0
_FORGET = 0.97
_ANY_PRIOR = 0.7
"""How often a guess of any class is right, at first; for drafters that cost something."""
_FREE = 0.02
"""A drafter that takes less of a step per guess is asked for all it has."""
_PROBE_EVERY = 16
"""Steps between two attempts with a drafter that did not pay."""


class DraftLength:
    """The numbers that one request has gathered about its drafts.

    Guesses come in classes (`Draft.classes`); how often each class was right is remembered with forgetting,
    and begins at a prior. Steps are even (see `SharedState`), so every one has room for a guess: a class that
    is not worth drafting keeps being tried for free, and drafting comes back when it would pay.
    """

    def __init__(self, most: int, cost: StepCost, prior: tuple[float, ...], free: bool = False) -> None:
        """`most`: drafted tokens per step, at most. `prior`: how often guesses of each class are right, at
        first; the last one holds for all further classes. `free`: the drafter's time is nothing, and `cost`
        speaks of another drafter beside it."""
        self._most = most
        self._cost = cost
        self._free = free
        rates = [*prior, *[prior[-1]] * MOST_CLASSES][:MOST_CLASSES]
        self._right = [_PRIOR_WEIGHT * rate for rate in rates]
        self._tried = [_PRIOR_WEIGHT] * MOST_CLASSES
        self._all_right, self._all_tried = _PRIOR_WEIGHT * _ANY_PRIOR, _PRIOR_WEIGHT
        self._emitted, self._spent = 1.0, cost.verifying(0)
        self._since_drafted = 0

    def wanted(self, room: int) -> int:
        """Guesses to ask the drafter for, when `room` could be used; 0: do not ask."""
        most = min(self._most, room)
        if most <= 0 or self._free or self._cost.draft < _FREE:
            return max(most, 0)
        rate = self._all_right / self._all_tried
        best = self._best([rate] * most, self._cost.draft)
        self._since_drafted += 1
        if best == 0 and self._since_drafted >= _PROBE_EVERY:
            best = 1
        if best:
            self._since_drafted = 0
        return best

    def worthwhile(self, draft: Draft) -> Draft:
        """The part of a finished draft that is worth verifying: one guess at least, which costs nothing.

        Of a drawn draft it looks at one pair of guesses after the other and stops for good at the first that,
        by the class of its first one, is not worth its rows: were a guess kept for what comes after it, which
        it decides itself, then what is kept would not follow its distribution any more.
        """
        rates = [self._right[kind] / self._tried[kind] for kind in draft.classes]
        if draft.distributions is None:
            return draft.first(max(self._best(rates, 0.0), 1))
        whole, least = self._cost.verifying(self._most), self._cost.verifying(0)
        pair = ROWS * self._price() * (whole - least) / max(self._most - 1, 1)
        chance = rates[0]
        for place in range(1, len(rates), ROWS):
            if chance * (rates[place] + rates[place] ** 2) <= pair:
                return draft.first(place)
            chance *= rates[place] * rates[min(place + 1, len(rates) - 1)]
        return draft

    def learn(self, draft: Draft, accepted: int, evaluated: int, emitted: int) -> None:
        """What came of a draft: its first `evaluated` guesses were looked at, `accepted` of them right."""
        for place, kind in enumerate(draft.classes[:evaluated]):
            right = place < accepted
            self._tried[kind] = _FORGET * self._tried[kind] + 1.0
            self._right[kind] = _FORGET * self._right[kind] + right
            self._all_tried = _FORGET * self._all_tried + 1.0
            self._all_right = _FORGET * self._all_right + right
        self._account(emitted, self.time_for(draft))

    def learn_plain(self, emitted: int, spent: float | None = None) -> None:
        """A step went by without the drafter; it took `spent`, by default as long as one without drafts."""
        self._account(emitted, self._cost.verifying(0) if spent is None else spent)

    def time_for(self, draft: Draft) -> float:
        """Time of drafting and verifying `draft`, in steps of one row."""
        return self._cost.verifying(len(draft)) + (0.0 if self._free else len(draft) * self._cost.draft)

    def _account(self, emitted: int, spent: float) -> None:
        self._emitted = _FORGET * self._emitted + emitted
        self._spent = _FORGET * self._spent + spent

    def _best(self, rates: list[float], draft_cost: float) -> int:
        """The length with the largest expected tokens less what the time would bring elsewhere."""
        price = self._price()
        best, best_gain, chance, tokens = 0, -price * self._cost.verifying(0), 1.0, 0.0
        for length, rate in enumerate(rates, start=1):
            chance *= rate
            tokens += chance
            gain = tokens - price * (self._cost.verifying(length) + length * draft_cost)
            if gain > best_gain:
                best, best_gain = length, gain
        return best

    def _price(self) -> float:
        """Tokens that a step's time brings, as it has gone lately."""
        return self._emitted / self._spent
