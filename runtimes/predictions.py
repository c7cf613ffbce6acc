"""From an encoder's logits to labels and words."""

from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding

from onnxforge.runtimes.binding import Floats
from onnxforge.runtimes.encoder_settings import EncoderSettings
from onnxforge.runtimes.errors import RequestError
from onnxforge.runtimes.text_tokenizer import TextTokenizer

_TOP_WORDS = 5


@dataclass(frozen=True)
class Prediction:
    """A label or word with its probability; `start` and `end` bound the characters it speaks of.

    The score of a regression is its number as it is.
    """

    label: str
    score: float
    start: int
    end: int


def classes(logits: Floats, text: str, settings: EncoderSettings) -> tuple[Prediction, ...]:
    """Every label with its score, highest first; logits float32 [labels]."""
    scores = _activated(logits, settings)
    order = np.argsort(-scores, kind="stable")
    return tuple(Prediction(_name(settings, int(i)), float(scores[i]), 0, len(text)) for i in order)


def token_labels(encoding: Encoding, logits: Floats, settings: EncoderSettings) -> tuple[Prediction, ...]:
    """The likeliest label of each token, special tokens left out; logits float32 [tokens, labels]."""
    scores = _softmax(logits)
    best = scores.argmax(axis=1)
    return tuple(
        Prediction(
            _name(settings, int(best[place])), float(scores[place, best[place]]), *encoding.offsets[place]
        )
        for place, special in enumerate(encoding.special_tokens_mask)
        if not special
    )


def masked_words(encoding: Encoding, logits: Floats, tokenizer: TextTokenizer) -> tuple[Prediction, ...]:
    """The likeliest words for each mask token; logits float32 [tokens, vocabulary].

    Raises RequestError when the text holds no mask token.
    """
    mask = tokenizer.special_tokens.get("mask_token", "")
    places = [place for place, token in enumerate(encoding.tokens) if token == mask]
    if not places:
        raise RequestError(
            f"The text holds no mask token; write {mask or '(this model has none)'} where words miss."
        )
    found = []
    for place in places:
        scores = _softmax(logits[place])
        for token in np.argsort(-scores, kind="stable")[:_TOP_WORDS]:
            word = tokenizer.decode([int(token)]).strip()
            found.append(Prediction(word, float(scores[token]), *encoding.offsets[place]))
    return tuple(found)


def _activated(logits: Floats, settings: EncoderSettings) -> Floats:
    match settings.activation:
        case "none":
            return logits
        case "sigmoid":
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
        case "softmax":
            return _softmax(logits)


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return scores


def _name(settings: EncoderSettings, index: int) -> str:
    return settings.labels[index] if index < len(settings.labels) else f"LABEL_{index}"
