"""Perplexity, and how far one decoder's next-token distributions are from another's.

Everything streams: one window's logits of each model are alive at a time, and of those only a few rows at
a time are widened to float64. KL is `KL(reference || candidate)` in nats, over the whole vocabulary.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np

from onnxforge.compiler.eval_text import EvaluationError, Window

_ROWS = 64


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


def perplexity(model: Scorer, windows: Iterable[Window]) -> Perplexity:
    """Score every window.

    Raises:
        EvaluationError: the logits hold NaN, or there is nothing to score.
    """
    nlls = []
    for window in windows:
        logits = model.logits(window.ids)
        for rows, targets in _chunks(window):
            nlls.append(-_pick(_log_softmax(logits[rows]), targets))
    return _summarize(nlls)


def compare(reference: Scorer, candidate: Scorer, windows: Iterable[Window]) -> Divergence:
    """Run both models over the same windows and hold their distributions against each other.

    Raises:
        EvaluationError: the vocabularies differ in size, the logits hold NaN, or there is nothing to score.
    """
    nll_reference, nll_candidate, kl = [], [], []
    agree, furthest = 0, 0.0
    for window in windows:
        theirs, ours = reference.logits(window.ids), candidate.logits(window.ids)
        if theirs.shape != ours.shape:
            raise EvaluationError(f"The vocabularies differ: logits {theirs.shape[1:]} and {ours.shape[1:]}.")
        for rows, targets in _chunks(window):
            p, q = _log_softmax(theirs[rows]), _log_softmax(ours[rows])
            nll_reference.append(-_pick(p, targets))
            nll_candidate.append(-_pick(q, targets))
            kl.append(np.sum(np.exp(p) * (p - q), axis=-1))
            agree += int(np.sum(p.argmax(axis=-1) == q.argmax(axis=-1)))
            furthest = max(furthest, float(np.abs(theirs[rows] - ours[rows]).max()))
    base, result = _summarize(nll_reference), _summarize(nll_candidate)
    paired = np.concatenate(nll_candidate) - np.concatenate(nll_reference)
    ratio = math.exp(float(paired.mean()))
    divergences = np.concatenate(kl)
    return Divergence(
        reference=base,
        candidate=result,
        ratio=ratio,
        ratio_error=ratio * _standard_error(paired),
        mean_kl=float(divergences.mean()),
        max_kl=float(divergences.max()),
        top1_agreement=agree / len(paired),
        max_abs_logit_diff=furthest,
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
    return Perplexity(value, value * _standard_error(every), len(every), mean)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
