"""Drafting by prompt lookup: what followed these words the last time will follow them again.

Saxena 2023, "Prompt Lookup Decoding". The last tokens are looked for earlier in the text, prompt and answer
alike, and what followed there is the draft: the longest match counts, and of those the latest.

    ... the quick brown fox jumps over ... the quick brown|
        --------------- --- ----- ----     --------------
        match of 3      the draft          end of the text
"""

from collections.abc import Sequence

from onnxforge.runtimes.drafter import MOST_CLASSES, Draft

_LONGEST = 4
"""Tokens of the longest match that is looked up; beyond it a match is only measured."""
_SURE = MOST_CLASSES - 1
"""Matches are measured up to this many tokens."""


class NgramDrafter:
    """A `Drafter` over an index of every run of 1 to 4 tokens; a new token costs 4 dictionary writes.

    There is always a guess: behind a token that never was before, it is what came most often behind such
    tokens (punctuation, word endings). A guess's class is the length of the match in front of it, drafted
    tokens included; 0 for that one.
    """

    cost = 0.0
    prior = (0.05, 0.2, 0.45, 0.7, 0.75, 0.8, 0.85, 0.9)
    forward_passes = 0

    def __init__(self) -> None:
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """Where the token stands that came after a run of tokens, the last time."""
        self._after_new: dict[int, int] = {}
        """How often a token came behind one that had never been there before."""
        self._usual = 0

    def read(self, tokens: Sequence[int]) -> None:
        """See `Drafter.read`."""
        text, after, counts = self._text, self._after, self._after_new
        for token in tokens:
            place = len(text)
            if place and (text[-1],) not in after:
                counts[token] = counts.get(token, 0) + 1
                if counts[token] >= counts.get(self._usual, 0):
                    self._usual = token
            for length in range(1, min(_LONGEST, place) + 1):
                after[tuple(text[place - length :])] = place
            text.append(token)

    def propose(self, count: int) -> Draft:
        """See `Drafter.propose`; never empty. A match near the end repeats: its copy is copied on."""
        place = self._match()
        if place is None:
            return Draft((self._usual,), (0,))
        length, period = self._length(place), len(self._text) - place
        tokens = tuple(self._text[place + i % period] for i in range(count))
        return Draft(tokens, tuple(min(length + i, _SURE) for i in range(count)))

    def _match(self) -> int | None:
        for length in range(min(_LONGEST, len(self._text)), 0, -1):
            place = self._after.get(tuple(self._text[-length:]))
            if place is not None:
                return place
        return None

    def _length(self, place: int) -> int:
        """Tokens in front of `place` that equal the end of the text; 1 or more, counted up to `_SURE`."""
        text, length = self._text, 0
        while length < min(place, _SURE) and text[place - 1 - length] == text[-1 - length]:
            length += 1
        return length
