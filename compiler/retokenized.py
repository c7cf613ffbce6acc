"""Perplexity of two models that read the same text as different tokens.

A token of a small vocabulary says less than one of a large vocabulary, so likelihoods are held against each
other over the same characters, and told per token of the reference: where both read the same tokens, that is
the usual perplexity. A text's likelihood is that of its usual tokenization, as always.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from onnxforge.compiler.eval_text import EvaluationError, Window, bos_prefix
from onnxforge.compiler.perplexity import Perplexity, Scorer, losses
from onnxforge.compiler.spread import standard_error


@dataclass(frozen=True)
class SameText:
    """A candidate held against a reference over the same text, each with its own tokens."""

    reference: Perplexity
    candidate: Perplexity
    """Per token of the reference's."""
    ratio: float
    ratio_error: float
    """Standard error of the ratio, from the paired differences text by text."""
    growth: float
    """Tokens of the candidate for one of the reference's."""


@dataclass(frozen=True)
class Reader:
    """A model and its tokenizer."""

    model: Scorer
    tokenizer: Tokenizer


@dataclass(frozen=True)
class _Read:
    nll: float
    """Nats, of all tokens that are scored."""
    letters: int
    """Characters that these cover: all but those of a first token that nothing stands in front of."""
    scored: int
    tokens: int


def same_text(reference: Reader, candidate: Reader, texts: Sequence[str], longest: int) -> SameText:
    """Score ``texts`` by both, those that both read in at most ``longest`` tokens.

    Raises:
        EvaluationError: none of the texts can be scored, or a model answers NaN.
    """
    pairs = [(_window(reference, text), _window(candidate, text)) for text in texts]
    pairs = [pair for pair in pairs if max(w.ids.shape[1] for w in pair) <= longest]
    read = [(_read(reference, theirs), _read(candidate, ours)) for theirs, ours in pairs]
    read = [pair for pair in read if min(part.letters for part in pair) > 0]
    if not read:
        raise EvaluationError("No part of the text can be scored in both vocabularies: take a longer one.")
    base, ours = (_total([pair[side] for pair in read]) for side in (0, 1))
    unit = base.letters / base.scored
    apart = np.array([(_rate(b) - _rate(a)) * unit for a, b in read])
    ratio = math.exp((_rate(ours) - _rate(base)) * unit)
    return SameText(
        reference=_perplexity([a for a, _ in read], unit, base.scored),
        candidate=_perplexity([b for _, b in read], unit, base.scored),
        ratio=ratio,
        ratio_error=ratio * standard_error(apart),
        growth=ours.tokens / base.tokens,
    )


def _window(reader: Reader, text: str) -> Window:
    prefix = bos_prefix(reader.tokenizer)
    ids = [*prefix, *reader.tokenizer.encode(text, add_special_tokens=False).ids]
    return Window(np.asarray(ids, dtype=np.int64)[None], max(len(prefix), 1), text)


def _read(reader: Reader, window: Window) -> _Read:
    prefix = len(bos_prefix(reader.tokenizer))
    spans = reader.tokenizer.encode(window.text, add_special_tokens=False).offsets
    unscored = 0 if prefix or not spans else spans[0][1]
    found = losses(reader.model, window)
    letters = len(window.text) - unscored if len(found) else 0
    return _Read(float(found.sum()), letters, len(found), len(spans))


def _total(parts: Sequence[_Read]) -> _Read:
    sums = np.array([(part.nll, part.letters, part.scored, part.tokens) for part in parts]).sum(axis=0)
    return _Read(float(sums[0]), int(sums[1]), int(sums[2]), int(sums[3]))


def _rate(part: _Read) -> float:
    """Nats per character."""
    return part.nll / part.letters


def _perplexity(parts: Sequence[_Read], unit: float, tokens: int) -> Perplexity:
    nll = _rate(_total(parts)) * unit
    rates = np.array([_rate(part) * unit for part in parts])
    error = standard_error(rates)
    value = math.exp(nll) if nll < 700 else math.inf
    return Perplexity(value, value * error, tokens, nll)
