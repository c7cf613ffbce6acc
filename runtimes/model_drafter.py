"""Drafting with a smaller model that reads the same tokens."""

from collections.abc import Sequence

import numpy as np

from onnxforge.runtimes.binding import Floats
from onnxforge.runtimes.decoder_state import DecoderState
from onnxforge.runtimes.distribution import Distribution
from onnxforge.runtimes.drafter import MOST_CLASSES, Draft
from onnxforge.runtimes.sampling import Sampler


class ModelDrafter:
    """A `Drafter` that runs another decoder, one token per guess, over a cache of its own.

    Its tokens are chosen by the request's own rule (penalty, temperature, top-k, top-p), so that the two
    distributions are near each other; drawn tokens come with theirs. A guess's class is how sure the draft
    model was, in steps of 1/12. Its steps may be of one row: nothing depends on their last bits.
    """

    cost = 0.3
    prior = tuple((kind + 0.5) / MOST_CLASSES for kind in range(MOST_CLASSES))

    def __init__(
        self, state: DecoderState, context_length: int, vocabulary: int, sampler: Sampler, stop: Sequence[int]
    ) -> None:
        """`vocabulary`: both models have the ids from 0 to this. Others are never proposed, and behind a text
        that holds one (padded rows of the larger model) nothing is. Drafts end with a token of `stop`."""
        self._state = state
        self._context = context_length
        self._vocabulary = vocabulary
        self._sampler = sampler
        self._stop = frozenset(stop)
        self._text: list[int] = []
        self._fed: list[int] = []
        """What the cache holds: the text for a while, then guesses that may have been wrong."""
        self._agreed = 0
        self._readable = True
        self.forward_passes = 0

    def read(self, tokens: Sequence[int]) -> None:
        """See `Drafter.read`."""
        self._text += tokens
        self._readable = self._readable and max(tokens, default=0) < self._vocabulary
        self._sampler.see(tokens)

    def propose(self, count: int) -> Draft:
        """See `Drafter.propose`; empty when the draft model cannot read the text: ids, or context."""
        count = min(count, self._context - len(self._text))
        if count < 1 or not self._readable:
            return Draft()
        mark = self._sampler.mark()
        logits = self._catch_up()
        tokens: list[int] = []
        classes: list[int] = []
        sources: list[Distribution] = []
        while True:
            guess = self._sampler.guess(logits[: self._vocabulary])
            tokens.append(guess.token)
            classes.append(min(int(guess.confidence * MOST_CLASSES), MOST_CLASSES - 1))
            if guess.distribution is not None:
                sources.append(guess.distribution)
            if len(tokens) == count or guess.token in self._stop:
                break
            self._sampler.see((guess.token,))
            logits = self._run(tokens[-1:])
        self._sampler.forget_since(mark)
        return Draft(tuple(tokens), tuple(classes), tuple(sources) if sources else None)

    def _catch_up(self) -> Floats:
        """Forget guesses that did not come true and read what is new; logits after the text's last token."""
        text, fed = self._text, self._fed
        agreed, most = self._agreed, min(len(fed), len(text) - 1)
        while agreed < most and fed[agreed] == text[agreed]:
            agreed += 1
        agreed = min(agreed, most)
        self._state.rewind(len(fed) - agreed)
        del fed[agreed:]
        self._agreed = len(text)
        return self._run(text[agreed:])

    def _run(self, tokens: list[int]) -> Floats:
        self.forward_passes += 1
        self._fed += tokens
        logits: Floats = self._state.prompt([np.array(tokens, np.int64)])[0]
        return logits
