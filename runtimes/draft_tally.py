"""Counting what became of drafts."""

from onnxforge.runtimes.result import SpeculativeStats

_SMOOTHING = 0.25


class DraftTally:
    """The counters of one request."""

    def __init__(self) -> None:
        self._rounds = self._proposed = self._evaluated = self._accepted = 0
        self._width = 0.0

    def add(self, proposed: int, evaluated: int, accepted: int) -> None:
        """One step."""
        self._width += (proposed - self._width) * (_SMOOTHING if self._rounds else 1.0)
        self._rounds += 1
        self._proposed += proposed
        self._evaluated += evaluated
        self._accepted += accepted

    def stats(self, emitted: int, forward_passes: int) -> SpeculativeStats:
        """All of it; `emitted` tokens came out of the steps."""
        return SpeculativeStats(
            rounds=self._rounds,
            draft_tokens_proposed=self._proposed,
            draft_tokens_evaluated=self._evaluated,
            draft_tokens_accepted=self._accepted,
            acceptance_rate=self._accepted / self._evaluated if self._evaluated else 0.0,
            avg_draft_tokens_per_round=self._proposed / self._rounds if self._rounds else 0.0,
            mean_emitted_tokens_per_round=emitted / self._rounds if self._rounds else 0.0,
            effective_k=round(self._width),
            draft_forward_passes=forward_passes,
        )
