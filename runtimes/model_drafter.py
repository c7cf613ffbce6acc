"""Drafting with a smaller model that reads the same tokens."""

from collections.abc import Sequence

import numpy as np

from onnxforge.runtimes.binding import Floats
from onnxforge.runtimes.decoder_state import DecoderState
from onnxforge.runtimes.drafted_tokens import PRIOR, drafted_tokens
from onnxforge.runtimes.drafter import Draft
from onnxforge.runtimes.sampling import Sampler


class ModelDrafter:
    """A `Drafter` that runs another decoder, one token per guess, over a cache of its own.

    See `drafted_tokens` for how guesses are chosen. Its steps may be of one row: nothing depends on their
    last bits.
    """

    cost = 0.3
    prior = PRIOR

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
        return drafted_tokens(
            self._sampler,
            self._catch_up(),
            lambda token: self._run([token]),
            count,
            self._vocabulary,
            self._stop,
        )

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
