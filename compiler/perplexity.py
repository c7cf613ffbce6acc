"""Perplexity, and how far one decoder's next-token distributions are from another's.

Everything streams: one window's logits of each model are alive at a time, and of those only a few rows at
a time are widened to float64. KL is `KL(reference || candidate)` in nats, over the whole vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol as Interface

import numpy as np

from onnxforge.compiler.eval_text import EvaluationError, Window
from onnxforge.compiler.spread import Spread, spread, standard_error

_ROWS = 64
_TOP = 5


class Scorer(Interface):
    """Anything that answers next-token logits, float32 [S, V], for ids int64 [1, S]."""

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Logits at every position."""
        ...


@dataclass(frozen=True)
class Perplexity:
    """``exp`` of the mean negative log-likelihood, with its standard error over tokens."""

    value: float
    error: float
    tokens: int
    nll: float
    """Mean negative log-likelihood, nats per token."""


@dataclass(frozen=True)
class Divergence:
    """A candidate decoder held against a reference over the same tokens."""

    reference: Perplexity
    candidate: Perplexity
    ratio: float
    """Candidate perplexity over reference perplexity."""
    ratio_error: float
    """Standard error of the ratio, from the paired differences token by token."""
    mean_kl: float
    max_kl: float
    top1_agreement: float
    """Share of positions where both put the same token first."""
    max_abs_logit_diff: float
    top5_agreement: float
    """Share of positions where the reference's first token is among the candidate's first five."""
    correlation: float
    """Pearson's, of the two models' log-likelihoods token by token; 1 where either is constant."""
    kl: Spread
    """Of the KL divergence over tokens, nats."""
    probability: Spread
    """Of the change of the right token's probability, candidate less reference, 0 to 1."""
    probability_rms: float


Watch = Callable[[float], None]
"""Hears the candidate's perplexity so far after every window."""


def perplexity(model: Scorer, windows: Iterable[Window], watch: Watch = lambda _: None) -> Perplexity:
    """Score every window.

    Raises:
        EvaluationError: the logits hold NaN, or there is nothing to score.
    """
    nlls: list[np.ndarray] = []
    for window in windows:
        if len(found := losses(model, window)):
            nlls.append(found)
        _tell(watch, nlls)
    return _summarize(nlls)


def losses(model: Scorer, window: Window) -> np.ndarray:
    """float64 [T]: the negative log-likelihood of each token that ``window`` scores, nats.

    Raises:
        EvaluationError: the logits hold NaN.
    """
    logits = model.logits(window.ids)
    found = [-_pick(_log_softmax(logits[rows]), targets) for rows, targets in _chunks(window)]
    return np.concatenate(found) if found else np.empty(0)


def compare(
    reference: Scorer, candidate: Scorer, windows: Iterable[Window], watch: Watch = lambda _: None
) -> Divergence:
    """Run both models over the same windows and hold their distributions against each other.

    Raises:
        EvaluationError: the vocabularies differ in size, the logits hold NaN, or there is nothing to score.
    """
    tally = _Tally()
    for window in windows:
        theirs, ours = reference.logits(window.ids), candidate.logits(window.ids)
        if theirs.shape != ours.shape:
            raise EvaluationError(f"The vocabularies differ: logits {theirs.shape[1:]} and {ours.shape[1:]}.")
        for rows, targets in _chunks(window):
            tally.add(theirs[rows], ours[rows], targets)
        _tell(watch, tally.nll_candidate)
    return tally.result()


@dataclass
class _Tally:
    """What two models said so far, a number or two per token."""

    nll_reference: list[np.ndarray] = field(default_factory=list)
    nll_candidate: list[np.ndarray] = field(default_factory=list)
    kl: list[np.ndarray] = field(default_factory=list)
    same_first: int = 0
    among_five: int = 0
    furthest: float = 0.0

    def add(self, theirs: np.ndarray, ours: np.ndarray, targets: np.ndarray) -> None:
        """Count logits [N, V] of both, which should have predicted ``targets`` [N]."""
        p, q = _log_softmax(theirs), _log_softmax(ours)
        self.nll_reference.append(-_pick(p, targets))
        self.nll_candidate.append(-_pick(q, targets))
        self.kl.append(np.sum(np.exp(p) * (p - q), axis=-1))
        first = p.argmax(axis=-1)
        self.same_first += int(np.sum(first == q.argmax(axis=-1)))
        before = np.sum(q > _pick(q, first)[:, None], axis=-1)
        self.among_five += int(np.sum(before < _TOP))
        self.furthest = max(self.furthest, float(np.abs(theirs - ours).max()))

    def result(self) -> Divergence:
        """Everything counted."""
        base, result = _summarize(self.nll_reference), _summarize(self.nll_candidate)
        theirs, ours = np.concatenate(self.nll_reference), np.concatenate(self.nll_candidate)
        paired = ours - theirs
        ratio = math.exp(float(paired.mean()))
        divergences, change = np.concatenate(self.kl), np.exp(-ours) - np.exp(-theirs)
        return Divergence(
            reference=base,
            candidate=result,
            ratio=ratio,
            ratio_error=ratio * standard_error(paired),
            mean_kl=float(divergences.mean()),
            max_kl=float(divergences.max()),
            top1_agreement=self.same_first / len(paired),
            max_abs_logit_diff=self.furthest,
            top5_agreement=self.among_five / len(paired),
            correlation=_correlation(theirs, ours),
            kl=spread(divergences),
            probability=spread(change),
            probability_rms=float(np.sqrt(np.mean(change**2))),
        )


def _chunks(window: Window) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of logits with the ids they should have predicted."""
    length = window.ids.shape[1]
    for start in range(window.first, length, _ROWS):
        stop = min(start + _ROWS, length)
        yield slice(start - 1, stop - 1), window.ids[0, start:stop]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    if np.isnan(wide).any():
        raise EvaluationError("The model answers NaN logits: nothing can be scored.")
    return wide


def _pick(log_probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.take_along_axis(log_probabilities, targets[:, None], axis=-1)[:, 0]


def _summarize(nlls: list[np.ndarray]) -> Perplexity:
    if not nlls:
        raise EvaluationError("There is nothing to score: no window has a target.")
    every = np.concatenate(nlls)
    mean = float(every.mean())
    value = math.exp(mean) if mean < 700 else math.inf
    return Perplexity(value, value * standard_error(every), len(every), mean)


def _tell(watch: Watch, nlls: list[np.ndarray]) -> None:
    """Nothing to tell as long as no token is scored."""
    if nlls:
        watch(_summarize(nlls).value)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    spreads = float(a.std() * b.std())
    return float(np.mean((a - a.mean()) * (b - b.mean())) / spreads) if spreads else 1.0
