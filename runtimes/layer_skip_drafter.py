"""Drafting with the model itself, less some of its layers."""

from collections.abc import Sequence

from onnxforge.runtimes.binding import Floats
from onnxforge.runtimes.drafted_tokens import PRIOR, drafted_tokens
from onnxforge.runtimes.drafter import Draft
from onnxforge.runtimes.sampling import Sampler
from onnxforge.runtimes.shared_state import SharedState


class LayerSkipDrafter:
    """A `Drafter` over the target's own session and cache: no second weight, no second prompt to read.

    Before a step the cache holds all of the text but its last token, as the whole model wrote it. Guesses are
    read behind that with layers left out, and rewound; verification writes over their lines. See
    `drafted_tokens` for how guesses are chosen.

    Source: Zhang et al. 2023, Draft & Verify (2309.08168).
    """

    cost = 0.7
    prior = PRIOR

    def __init__(
        self, state: SharedState, context_length: int, vocabulary: int, sampler: Sampler, stop: Sequence[int]
    ) -> None:
        """`state` is the target's own. Drafts end with a token of `stop`."""
        self._state = state
        self._context = context_length
        self._vocabulary = vocabulary
        self._sampler = sampler
        self._stop = frozenset(stop)
        self._last = 0
        self.forward_passes = 0

    def read(self, tokens: Sequence[int]) -> None:
        """See `Drafter.read`."""
        if tokens:
            self._last = tokens[-1]
        self._sampler.see(tokens)

    def propose(self, count: int) -> Draft:
        """See `Drafter.propose`; empty where the context has no room for guesses."""
        before = self._state.lengths.item()
        count = min(count, self._context - before)
        if count < 1:
            return Draft()
        try:
            return drafted_tokens(
                self._sampler, self._skim(self._last), self._skim, count, self._vocabulary, self._stop
            )
        finally:
            self._state.rewind(self._state.lengths.item() - before)

    def _skim(self, token: int) -> Floats:
        self.forward_passes += 1
        return self._state.skim(token)
