"""How far one encoder's answers are from another's, over real sentences in ragged batches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np
from tokenizers import Tokenizer

from onnxforge.compiler.eval_text import EvaluationError

_BATCH = 8


class Encoder(Interface):
    """Anything that answers named outputs for ids and mask, int64 [B, S]."""

    outputs: tuple[str, ...]

    def run(
        self, ids: np.ndarray, mask: np.ndarray | None = None, fetch: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Outputs by name."""
        ...


@dataclass(frozen=True)
class Batch:
    """Right-padded sentences: ``ids`` and ``mask``, int64 [B, S]."""

    ids: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class EncoderParity:
    """A candidate encoder held against a reference. Padding is never looked at."""

    output: str
    """The output compared: ``last_hidden_state``, or ``logits``."""
    sentences: int
    mean_cosine: float
    min_cosine: float
    """Over sentences: the masked mean of token vectors, or the sentence's own logits."""
    max_abs: float
    label_agreement: float | None
    """Share of equal argmax, per sentence or per token; ``None`` when the output is not logits."""


def batches(sentences: Sequence[str], tokenizer: Tokenizer, longest: int) -> list[Batch]:
    """Tokenize with special tokens, truncate to ``longest`` tokens, pad on the right, eight to a batch."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    encoded = [np.asarray(e.ids, dtype=np.int64) for e in tokenizer.encode_batch(list(sentences))]
    result = []
    for start in range(0, len(encoded), _BATCH):
        rows = encoded[start : start + _BATCH]
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        result.append(Batch(ids, mask))
    return result


def compare_encoders(reference: Encoder, candidate: Encoder, work: Iterable[Batch]) -> EncoderParity:
    """Run both over the same batches.

    Raises:
        EvaluationError: the graphs share no output, answer different shapes or NaN, or there is no batch.
    """
    output = _shared_output(reference, candidate)
    cosines, furthest, labels = [], 0.0, []
    for batch in work:
        theirs, ours = (m.run(batch.ids, batch.mask, [output])[output] for m in (reference, candidate))
        if theirs.shape != ours.shape:
            raise EvaluationError(f"The shapes of `{output}` differ: {theirs.shape} and {ours.shape}.")
        if np.isnan(ours).any():
            raise EvaluationError(f"`{output}` holds NaN: nothing can be compared.")
        real = batch.mask.astype(bool) if theirs.ndim == 3 else np.ones(theirs.shape[:-1], dtype=bool)
        furthest = max(furthest, float(np.abs(theirs - ours)[real].max()))
        cosines.append(cosine_of_rows(pooled(theirs, batch.mask), pooled(ours, batch.mask)))
        labels.append((theirs.argmax(axis=-1) == ours.argmax(axis=-1))[real])
    if not cosines:
        raise EvaluationError("There is nothing to compare: the text has no sentence.")
    every = np.concatenate(cosines)
    return EncoderParity(
        output=output,
        sentences=len(every),
        mean_cosine=float(every.mean()),
        min_cosine=float(every.min()),
        max_abs=furthest,
        label_agreement=float(np.concatenate(labels).mean()) if output == "logits" else None,
    )


def cosines_of_readings(
    reference: Encoder, candidate: Encoder, readings: Iterable[tuple[Batch, Batch]]
) -> np.ndarray:
    """float64 [sentences]: cosine of each sentence, which each model reads with a tokenizer of its own.

    ``readings`` are the reference's batch and the candidate's of the same sentences.

    Raises:
        EvaluationError: the graphs share no output.
    """
    output = _shared_output(reference, candidate)
    found = [np.empty(0)]
    for their, our in readings:
        vectors = [
            pooled(model.run(batch.ids, batch.mask, [output])[output], batch.mask)
            for model, batch in ((reference, their), (candidate, our))
        ]
        found.append(cosine_of_rows(*vectors))
    return np.concatenate(found)


def _shared_output(reference: Encoder, candidate: Encoder) -> str:
    for name in ("last_hidden_state", "logits"):
        if name in reference.outputs and name in candidate.outputs:
            return name
    raise EvaluationError(
        "The graphs share neither `last_hidden_state` nor `logits`: "
        f"{reference.outputs} and {candidate.outputs}."
    )


def pooled(output: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """float64 [B, K]: the masked mean of token vectors [B, S, K]; a vector of each sentence as it is."""
    if output.ndim == 2:
        return output.astype(np.float64)
    weight = mask[:, :, None].astype(np.float64)
    mean: np.ndarray = (output * weight).sum(axis=1) / weight.sum(axis=1)
    return mean


def cosine_of_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine of each row of ``a`` to the same row of ``b``, both [B, K]."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine: np.ndarray = (a * b).sum(axis=-1) / np.maximum(norms, 1e-30)
    return cosine
