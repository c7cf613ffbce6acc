"""Where drafted tokens come from: the small interface that speculative decoding asks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from onnxforge.runtimes.distribution import Distribution

MOST_CLASSES = 12
"""A guess's class is a number from 0 to this, exclusive."""


@dataclass(frozen=True)
class Draft:
    """Tokens that may come next, in order."""

    tokens: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    """How sure each guess is, a small number that only its drafter gives a meaning (a match length, a
    confidence): how often guesses of a class were right says how many of a draft are worth verifying.

    Where tokens are drawn, a guess's class must follow from what it was drawn from, never from what was
    drawn: a draft that is cut because of the token itself is no longer a draw from its distribution."""
    distributions: tuple[Distribution, ...] | None = None
    """What each token was drawn from, where drafts are drawn; None: each token was certain to be proposed."""

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, count: int) -> "Draft":
        """The draft without what comes after `count` tokens."""
        if count >= len(self.tokens):
            return self
        kept = None if self.distributions is None else self.distributions[:count]
        return Draft(self.tokens[:count], self.classes[:count], kept)


class Drafter(Protocol):
    """Guesses of one request. A new way of drafting is one class like this."""

    @property
    def cost(self) -> float:
        """Time of one guess over that of a one-token step of the model, while not measured; 0: free."""

    @property
    def prior(self) -> tuple[float, ...]:
        """How often guesses of class 0, 1, ... are right, while not observed; the last holds for the rest."""

    @property
    def forward_passes(self) -> int:
        """Model runs so far."""

    def read(self, tokens: Sequence[int]) -> None:
        """Tokens that the text has grown by: the prompt at first, then what each step emitted.

        Guesses that are not among them were wrong; a drafter with a state of its own rewinds it.
        """

    def propose(self, count: int) -> Draft:
        """At most `count` guesses, `count` >= 1, of what comes after all that was read."""
