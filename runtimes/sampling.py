"""Choosing the next token from logits, in the order of transformers' processors.

Repetition penalty (Keskar et al. 2019), then temperature, top-k (Fan et al. 2018) and top-p (Holtzman et al.
2020). Top-k runs first here, on the raw logits: a positive temperature keeps their order, so the set is the
same, and what follows works on k numbers instead of the vocabulary.

A drafted token is verified by the rule of Leviathan et al. 2022 (arXiv:2211.17192, algorithm 1).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from onnxforge.runtimes.binding import Floats, Int64s
from onnxforge.runtimes.distribution import Distribution, Weights
from onnxforge.runtimes.errors import NumericalError, RequestError
from onnxforge.runtimes.generation_options import GenerationOptions
from onnxforge.runtimes.seen_tokens import SeenTokens

_LEAST_PENALTY, _MOST_PENALTY = 1e-3, 1e3


@dataclass(frozen=True)
class Guess:
    """A token chosen by a draft model."""

    token: int
    confidence: float
    """How likely the draft model finds its likeliest token, 0 to 1, before temperature and its kin. Not how
    likely it finds this token: see `Draft.classes`."""
    distribution: Distribution | None
    """What it was drawn from; None where the likeliest was taken."""


class Sampler:
    """The choices of one sequence; equal options, seed and logits give equal tokens."""

    def __init__(
        self, options: GenerationOptions, prompt: Iterable[int], stream: int = 0, drafts: bool = False
    ) -> None:
        """`stream` keeps the sequences of one batch apart: row n draws from child n of the seed, and its
        draft model (`drafts`) from a child of that.

        Raises RequestError for a repetition penalty that would make float32 logits overflow.
        """
        if not _LEAST_PENALTY <= options.repetition_penalty <= _MOST_PENALTY:
            raise RequestError(
                f"repetition_penalty is {options.repetition_penalty:g}; pass {_LEAST_PENALTY:g} to "
                f"{_MOST_PENALTY:g}. 1 changes nothing, and 1.1 to 1.3 is usual."
            )
        self._options = options
        self._penalised = options.repetition_penalty != 1.0
        self._seen = SeenTokens(prompt if self._penalised else ())
        if options.do_sample:
            key = (stream, 1) if drafts else (stream,)
            self._random = np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=key))

    def choose(self, logits: Floats) -> int:
        """The next token id from logits float32 [vocabulary], which may be overwritten.

        Raises NumericalError when the logits hold NaN or an infinite largest value.
        """
        best = self._best(logits)
        token = self._distribution(logits).draw(self._random.random()) if self._options.do_sample else best
        self.see((token,))
        return token

    def verify(self, logits: Floats, drafted: int, source: Distribution | None) -> int:
        """The next token id, where `drafted` was proposed for its place; `drafted` itself when accepted.

        `source` is the distribution q that it was drawn from. With q and the model's own p, the draft is
        accepted with probability min(1, p/q), and else the token is drawn from what p has above q: the token
        then follows p, whatever q is. A token that was certain to be proposed (None) is accepted when
        the token chosen as ever equals it, which is the same rule: with q = 1 at the draft it passes with
        probability p, and p without the draft is what is left. So it takes the randomness of `choose`.
        """
        if source is None or not self._options.do_sample:
            return self.choose(logits)
        self._best(logits)
        own = self._distribution(logits)
        if self._random.random() * source.probability(drafted) < own.probability(drafted):
            token = drafted
        else:
            token = own.above(source).draw(self._random.random())
        self.see((token,))
        return token

    def guess(self, logits: Floats) -> Guess:
        """A draft model's next token from its logits float32 [vocabulary]; it is not `see`n."""
        best = self._best(logits)
        confidence = 1.0 / float(np.exp(logits - logits[best]).sum())
        if not self._options.do_sample:
            return Guess(best, confidence, None)
        found = self._distribution(logits)
        return Guess(found.draw(self._random.random()), confidence, found)

    def see(self, tokens: Iterable[int]) -> None:
        """Tokens that the text has grown by: the repetition penalty counts them from now on."""
        if self._penalised:
            self._seen.add(tokens)

    def mark(self) -> int:
        """This moment, for `forget_since`."""
        return len(self._seen)

    def forget_since(self, mark: int) -> None:
        """Undo every `see` since the `mark`."""
        self._seen.back_to(mark)

    def _best(self, logits: Floats) -> int:
        """Apply the repetition penalty in place; the likeliest id."""
        if self._penalised:
            ids = self._seen.ids
            seen = logits[ids]
            penalty = np.float32(self._options.repetition_penalty)
            logits[ids] = np.where(seen < 0, seen * penalty, seen / penalty)
        best = int(logits.argmax())  # NaN counts as largest, so this finds it too
        if not np.isfinite(logits[best]):
            raise NumericalError(
                f"The model's logits hold {logits[best]}: its weights or numerics are broken."
            )
        return best

    def _distribution(self, logits: Floats) -> Distribution:
        """What temperature, top-k and top-p leave of penalised logits."""
        tokens = _top_k(logits, self._options.top_k)
        scores = logits[tokens].astype(np.float64)
        # The largest becomes 0 before the division: a temperature near 0 then leaves it 0 and sends the
        # others to -inf, which is its meaning.
        with np.errstate(over="ignore"):
            weights: Weights = np.exp((scores - scores.max()) / self._options.temperature)
        if self._options.top_p < 1.0:
            kept = _top_p(weights, self._options.top_p)
            tokens, weights = tokens[kept], weights[kept]
        return Distribution(tokens, weights)


def _top_k(logits: Floats, k: int) -> Int64s:
    """Ids of the k largest logits; all that equal the k-th stay, as in transformers."""
    if k == 0 or k >= len(logits):
        return np.arange(len(logits))
    least = np.partition(logits, len(logits) - k)[len(logits) - k]
    return np.flatnonzero(logits >= least)


def _top_p(weights: Weights, p: float) -> Int64s:
    """Places of the fewest largest weights whose share of the sum reaches p; at least one."""
    order = np.argsort(-weights, kind="stable")
    share = weights[order].cumsum() / weights.sum()
    return order[: int(np.searchsorted(share, p, side="left")) + 1]
