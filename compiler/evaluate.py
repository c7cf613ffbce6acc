"""What `eval` measures: one artifact over texts, by itself or held against a base."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnxforge.compiler.cached_steps import CachedSteps
from onnxforge.compiler.eval_text import EvaluationError, EvaluationText, Protocol, cut, sentences
from onnxforge.compiler.parity import EncoderParity, batches, compare_encoders
from onnxforge.compiler.perplexity import Divergence, Perplexity, Scorer, compare, perplexity
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.runtimes.verify import verify_files

WINDOW, SENTENCE = 512, 128
"""Tokens of a window and most tokens of a sentence, where nothing else is asked for."""
_SHOWN = 3

Watch = Callable[[str], None]
"""Hears where the evaluation is, in a few words."""


@dataclass(frozen=True)
class Asked:
    """How to score."""

    window: int | None = None
    """Tokens per window (decoders) or the most per sentence (encoders); None: 512 or 128, or the context."""
    stride: int | None = None
    windows: int | None = None
    unscored: int = 0
    tokens_per_run: int = 0
    sentences: int = 64


@dataclass(frozen=True)
class DecoderScore:
    """One text, scored by a decoder."""

    protocol: Protocol
    perplexity: Perplexity
    divergence: Divergence | None = None


@dataclass(frozen=True)
class EncoderScore:
    """One text's sentences, encoded by an artifact and by its base."""

    text: str
    sha256: str
    longest: int
    parity: EncoderParity


def open_pair(
    folder: Path, base: Path | None, provider: str | None
) -> tuple[GraphSession, GraphSession | None]:
    """The artifact and its base, once it is sure that they can be held against each other.

    Raises:
        ArtifactError: a file is not the one that was written.
        RequestError: a provider is not on this machine.
        EvaluationError: two kinds of model, or two vocabularies; an encoder without a base.
    """
    model = _open(folder, provider)
    if base is None:
        if not model.is_decoder:
            raise EvaluationError(
                f"{folder} holds an encoder, and perplexity is a decoder's measure. Give --base DIR, an "
                "artifact whose vectors its own are held against."
            )
        return model, None
    other = _open(base, provider)
    if model.is_decoder != other.is_decoder:
        kinds = {True: "a decoder", False: "an encoder"}
        raise EvaluationError(
            f"{folder} holds {kinds[model.is_decoder]} and the base {base} {kinds[other.is_decoder]}: "
            "perplexity is a decoder's measure, cosine an encoder's."
        )
    _require_same_vocabulary(model, other)
    return model, other


def score_decoder(
    model: GraphSession, base: GraphSession | None, text: EvaluationText, asked: Asked, watch: Watch
) -> DecoderScore:
    """Perplexity of ``text``, and the divergence from ``base``.

    Raises:
        EvaluationError: the text is too short, the window does not fit, or a graph answers NaN.
    """
    window = _length(model, base, asked.window, WINDOW)
    windows, protocol = cut(
        text,
        model.tokenizer(),
        window=window,
        stride=asked.stride,
        limit=asked.windows,
        unscored=asked.unscored,
    )
    protocol = replace(protocol, tokens_per_run=asked.tokens_per_run)
    done = 0

    def after(value: float) -> None:
        nonlocal done
        done += 1
        watch(f"{text.name}: window {done} of {len(windows)}, PPL {value:.4f}")

    ours = _scorer(model, asked.tokens_per_run)
    if base is None:
        return DecoderScore(protocol, perplexity(ours, windows, after))
    found = compare(_scorer(base, asked.tokens_per_run), ours, windows, after)
    return DecoderScore(protocol, found.candidate, found)


def score_encoder(
    model: GraphSession, base: GraphSession, text: EvaluationText, asked: Asked, watch: Watch
) -> EncoderScore:
    """Cosine of both artifacts' vectors over the sentences of ``text``.

    Raises:
        EvaluationError: the text has no sentence, or the graphs share no output.
    """
    longest = _length(model, base, asked.window, SENTENCE)
    found = sentences(asked.sentences, text)
    if not found:
        raise EvaluationError(f"{text.name} has no sentence of 4 to 39 words: there is nothing to compare.")
    watch(f"{text.name}: {len(found)} sentences")
    parity = compare_encoders(base, model, batches(found, model.tokenizer(), longest))
    return EncoderScore(text.name, text.sha256, longest, parity)


def _open(folder: Path, provider: str | None) -> GraphSession:
    verify_files(folder)
    return GraphSession(folder, provider)


def _scorer(session: GraphSession, tokens_per_run: int) -> Scorer:
    return CachedSteps(session.decoder_graph(), tokens_per_run) if tokens_per_run else session


def _length(model: GraphSession, base: GraphSession | None, asked: int | None, usual: int) -> int:
    """What was asked for if it fits, else the usual length, cut to the shorter context."""
    context = min(s.manifest.context_length for s in (model, base) if s is not None)
    if asked is not None and asked > context:
        raise EvaluationError(f"A window of {asked} tokens does not fit the model's context of {context}.")
    return asked or min(usual, context)


def _require_same_vocabulary(model: GraphSession, base: GraphSession) -> None:
    """Distributions over other tokens, or over the same ones in another order, cannot be compared."""
    ours, theirs = (s.tokenizer().get_vocab(with_added_tokens=True) for s in (model, base))
    if ours != theirs:
        differing = sorted(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
        raise EvaluationError(
            f"{model.folder} and the base {base.folder} do not share a vocabulary: {len(ours)} and "
            f"{len(theirs)} tokens, {len(differing)} of them different ({_listed(differing)}). Only "
            "artifacts of one model, or of models with one tokenizer, can be held against each other."
        )
    if model.tokenizer().to_str() != base.tokenizer().to_str() and _reads_differently(model, base):
        raise EvaluationError(
            f"{model.folder} and the base {base.folder} share a vocabulary, but their tokenizers read a text "
            "as different ids: their tokenizer.json differ in merges, normalizer or special tokens."
        )


def _reads_differently(model: GraphSession, base: GraphSession) -> bool:
    """Asked of a sample that has words, spaces, numbers, capitals, accents and other scripts in it."""
    sample = "The quick brown fox, 1,234.5 times:\n\tjumped  over naïve Ångströms — 漢字 и 🦊!</s> <s>"
    ours, theirs = (s.tokenizer().encode(sample).ids for s in (model, base))
    return bool(ours != theirs)


def _listed(tokens: Sequence[str]) -> str:
    shown = ", ".join(repr(token) for token in tokens[:_SHOWN])
    return f"{shown}, ..." if len(tokens) > _SHOWN else shown
