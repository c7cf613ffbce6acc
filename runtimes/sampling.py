"""Choosing the next token from logits, in the order of transformers' processors.

Repetition penalty (Keskar et al. 2019), then temperature, top-k (Fan et al. 2018) and top-p (Holtzman et al.
2020). Top-k runs first here, on the raw logits: a positive temperature keeps their order, so the set is the
same, and what follows works on k numbers instead of the vocabulary.
"""

from collections.abc import Iterable

import numpy as np

from onnxforge.runtimes.binding import Floats, Int64s
from onnxforge.runtimes.errors import NumericalError, RequestError
from onnxforge.runtimes.generation_options import GenerationOptions

_LEAST_PENALTY, _MOST_PENALTY = 1e-3, 1e3


class Sampler:
    """The choices of one sequence; equal options, seed and logits give equal tokens."""

    def __init__(self, options: GenerationOptions, prompt: Iterable[int], stream: int = 0) -> None:
        """`stream` keeps the sequences of one batch apart: row n draws from child n of the seed.

        Raises RequestError for a repetition penalty that would make float32 logits overflow.
        """
        if not _LEAST_PENALTY <= options.repetition_penalty <= _MOST_PENALTY:
            raise RequestError(
                f"repetition_penalty is {options.repetition_penalty:g}; pass {_LEAST_PENALTY:g} to "
                f"{_MOST_PENALTY:g}. 1 changes nothing, and 1.1 to 1.3 is usual."
            )
        self._options = options
        self._penalised = options.repetition_penalty != 1.0
        self._seen = np.unique(np.fromiter(prompt, np.int64)) if self._penalised else np.empty(0, np.int64)
        if options.do_sample:
            self._random = np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=(stream,)))

    def choose(self, logits: Floats) -> int:
        """The next token id from logits float32 [vocabulary], which may be overwritten.

        Raises NumericalError when the logits hold NaN or an infinite largest value.
        """
        if self._penalised:
            self._penalise(logits)
        best = int(logits.argmax())  # NaN counts as largest, so this finds it too
        if not np.isfinite(logits[best]):
            raise NumericalError(
                f"The model's logits hold {logits[best]}: its weights or numerics are broken."
            )
        token = self._draw(logits) if self._options.do_sample else best
        if self._penalised and token not in self._seen:
            self._seen = np.append(self._seen, token)
        return token

    def _penalise(self, logits: Floats) -> None:
        seen = logits[self._seen]
        penalty = np.float32(self._options.repetition_penalty)
        logits[self._seen] = np.where(seen < 0, seen * penalty, seen / penalty)

    def _draw(self, logits: Floats) -> int:
        tokens = _top_k(logits, self._options.top_k)
        scores = logits[tokens].astype(np.float64)
        # The largest becomes 0 before the division: a temperature near 0 then leaves it 0 and sends the
        # others to -inf, which is its meaning.
        with np.errstate(over="ignore"):
            weights = np.exp((scores - scores.max()) / self._options.temperature)
        if self._options.top_p < 1.0:
            kept = _top_p(weights, self._options.top_p)
            tokens, weights = tokens[kept], weights[kept]
        cumulative = weights.cumsum()
        chosen = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(tokens[min(int(chosen), len(tokens) - 1)])


def _top_k(logits: Floats, k: int) -> Int64s:
    """Ids of the k largest logits; all that equal the k-th stay, as in transformers."""
    if k == 0 or k >= len(logits):
        return np.arange(len(logits))
    least = np.partition(logits, len(logits) - k)[len(logits) - k]
    return np.flatnonzero(logits >= least)


def _top_p(weights: np.ndarray[tuple[int], np.dtype[np.float64]], p: float) -> Int64s:
    """Places of the fewest largest weights whose share of the sum reaches p; at least one."""
    order = np.argsort(-weights, kind="stable")
    share = weights[order].cumsum() / weights.sum()
    return order[: int(np.searchsorted(share, p, side="left")) + 1]
