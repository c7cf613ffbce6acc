"""Quality of an artifact with fewer tokens than its source: what is held against what, and in which words.

Logits are compared on the kept tokens, over what the artifact reads, so that an exact cut shows as no
difference at all. What the cut costs shows where each reads the text with its own tokens: the perplexity of a
decoder, the cosine of an encoder.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxforge.compiler.eval_text import EvaluationError
from onnxforge.compiler.parity import Batch, EncoderParity, batches, compare_encoders, cosines_of_readings
from onnxforge.compiler.perplexity import Divergence
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.retokenized import SameText
from onnxforge.compiler.token_map import OfKeptTokens, TokenMap


def in_both(divergence: Divergence, both: SameText) -> Divergence:
    """``divergence`` with the perplexities of the same text, each model reading its own tokens."""
    return replace(
        divergence,
        reference=both.reference,
        candidate=both.candidate,
        ratio=both.ratio,
        ratio_error=both.ratio_error,
    )


def cut_decoder(tokens: TokenMap, both: SameText) -> str:
    """The sentences of a report that tell of it."""
    return (
        f"The artifact has {len(tokens.kept):,} of the source's {tokens.size:,} tokens, and writes this text "
        f"with {both.growth:.3f} times as many. Perplexity is per token of the source's own reading of the "
        "same text; logits, KL and first tokens are compared on the kept tokens, over the artifact's reading"
    )


def compare_cut_encoders(
    reference: GraphSession, candidate: GraphSession, tokens: TokenMap, sentences: Sequence[str], longest: int
) -> tuple[list[Batch], EncoderParity, str]:
    """The candidate's batches, how far it is from the reference, and what a report says of the cut.

    Raises:
        EvaluationError: no sentence is made of kept tokens only; or as
            :func:`onnxforge.compiler.parity.compare_encoders`.
    """
    theirs = [batches([sentence], reference.tokenizer(), longest)[0].ids for sentence in sentences]
    ours = [batches([sentence], candidate.tokenizer(), longest)[0].ids for sentence in sentences]
    same = [np.array_equal(tokens.old(own), their) for own, their in zip(ours, theirs, strict=True)]
    kept = [sentence for sentence, equal in zip(sentences, same, strict=True) if equal]
    other = [sentence for sentence, equal in zip(sentences, same, strict=True) if not equal]
    if not kept:
        raise EvaluationError(
            f"Not one of {len(sentences)} sentences is made of the tokens that were kept: the evaluation "
            "text is of another kind than the data that chose them. Name one like it with --eval-text."
        )
    work = batches(kept, candidate.tokenizer(), longest)
    parity = compare_encoders(OfKeptTokens(reference, tokens), candidate, work)
    readings = zip(
        batches(other, reference.tokenizer(), longest),
        batches(other, candidate.tokenizer(), longest),
        strict=True,
    )
    cosines = cosines_of_readings(OfKeptTokens(reference, tokens, own_ids=True), candidate, readings)
    said = (
        f". The artifact has {len(tokens.kept):,} of the source's {tokens.size:,} tokens: it reads "
        f"{len(other)} of the sentences with other tokens than the source, and they count for the cosine only"
    )
    if not len(cosines):
        return work, parity, said
    total = parity.sentences + len(cosines)
    mean = (parity.mean_cosine * parity.sentences + float(cosines.sum())) / total
    least = min(parity.min_cosine, float(cosines.min()))
    said += f" (mean {cosines.mean():.4f})"
    return work, replace(parity, sentences=total, mean_cosine=mean, min_cosine=least), said
