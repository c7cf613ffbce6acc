"""The quality part of a proof: which comparison fits this model, over which text."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxforge.compiler.cached_steps import STEP, CachedSteps
from onnxforge.compiler.eval_text import EvaluationError, Window, cut, evaluation_text, sentences
from onnxforge.compiler.evidence import Evidence
from onnxforge.compiler.float16_range import check_float16_range
from onnxforge.compiler.parity import batches, compare_encoders
from onnxforge.compiler.perplexity import Scorer, compare
from onnxforge.compiler.proof_decoding import decoding_parity
from onnxforge.compiler.proof_layers import error_by_layer
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.proof_types import ProofOptions
from onnxforge.compiler.proof_vocabulary import compare_cut_encoders, cut_decoder, in_both
from onnxforge.compiler.retokenized import Reader, same_text
from onnxforge.compiler.token_map import OfKeptTokens, TokenMap, token_map
from onnxforge.models.source import Source

_LAYER_TOKENS = 64
_LONGEST_SENTENCE = 128


def quality(
    evidence: Evidence, artifact: Path, export: Path, source: Source, options: ProofOptions
) -> Evidence:
    """Run artifact and export over the same text; returns the evidence with its quality fields filled.

    Raises:
        EvaluationError: the tokenizer's ids do not fit the graph, or a graph answers NaN.
    """
    reference, candidate = GraphSession(export), GraphSession(artifact, evidence.verified_on)
    tokens = token_map(reference, candidate)
    vocabulary = _vocabulary(source) if tokens is None else len(tokens.kept)
    score = _decoder if reference.is_decoder else _encoder
    return score(evidence, reference, candidate, tokens, vocabulary, options)


def _decoder(
    evidence: Evidence,
    reference: GraphSession,
    candidate: GraphSession,
    tokens: TokenMap | None,
    vocabulary: int,
    options: ProofOptions,
) -> Evidence:
    length = min(options.window, candidate.manifest.context_length)
    if candidate.has_tokenizer:
        text = evaluation_text(options.text)
        windows, protocol = cut(text, candidate.tokenizer(), window=length, limit=options.windows)
        said = protocol.sentence()
    else:
        windows = _random_windows(vocabulary, length, options)
        said = (
            f"{len(windows)} windows of {length} random ids, seed {options.seed} (no tokenizer travels along)"
        )
    _check_ids(np.concatenate([w.ids[0] for w in windows]), vocabulary)
    scorer: Scorer = candidate
    if candidate.quantized_cache:
        scorer, said = CachedSteps(candidate.decoder_graph()), f"{said}, decoded {STEP} tokens a run"
    spoken_to = reference if tokens is None else OfKeptTokens(reference, tokens)
    divergence = compare(spoken_to, scorer, windows)
    first = windows[0].ids[:, :_LAYER_TOKENS]
    layers = error_by_layer(reference, candidate, first, first if tokens is None else tokens.old(first))
    if tokens is not None:
        readers = (Reader(reference, reference.tokenizer()), Reader(scorer, candidate.tokenizer()))
        both = same_text(*readers, [window.text for window in windows], length)
        divergence = in_both(divergence, both)
        said = f"{said}. {cut_decoder(tokens, both)}"
    decoding = decoding_parity(candidate, candidate.decoder_graph(), windows[0].ids, length)
    evidence = _in_range(evidence, candidate, windows[0].ids)
    return replace(evidence, protocol=said, divergence=divergence, decoding=decoding, layers=layers)


def _encoder(
    evidence: Evidence,
    reference: GraphSession,
    candidate: GraphSession,
    tokens: TokenMap | None,
    vocabulary: int,
    options: ProofOptions,
) -> Evidence:
    text = evaluation_text(options.text)
    longest = min(_LONGEST_SENTENCE, candidate.manifest.context_length)
    chosen = sentences(options.sentences, text)
    if tokens is None:
        work = batches(chosen, candidate.tokenizer(), longest)
        parity, spoken_to = compare_encoders(reference, candidate, work), ""
    else:
        work, parity, spoken_to = compare_cut_encoders(reference, candidate, tokens, chosen, longest)
    for batch in work:
        _check_ids(batch.ids, vocabulary)
    first = work[0].ids[:1, : int(work[0].mask[0].sum())]
    layers = error_by_layer(reference, candidate, first, first if tokens is None else tokens.old(first))
    said = (
        f"{parity.sentences} sentences of {text.name} (sha256 {text.sha256[:12]}), special tokens added, "
        f"at most {longest} tokens, ragged batches; cosine of masked means{spoken_to}"
    )
    evidence = _in_range(evidence, candidate, work[0].ids[:1, : int(work[0].mask[0].sum())])
    return replace(evidence, protocol=said, encoder=parity, layers=layers)


def _in_range(evidence: Evidence, candidate: GraphSession, ids: np.ndarray) -> Evidence:
    """On its own provider a value beyond float16 shows in the numbers; on another one it is looked for."""
    check = None if evidence.is_verified else check_float16_range(candidate, ids[:, :_LAYER_TOKENS])
    return evidence if check is None else replace(evidence, structure=(*evidence.structure, check))


def _random_windows(vocabulary: int, length: int, options: ProofOptions) -> list[Window]:
    if not vocabulary:
        raise EvaluationError(
            "The model brings neither a tokenizer nor a vocabulary size: nothing can be scored."
        )
    rng = np.random.default_rng(options.seed)
    return [Window(rng.integers(0, vocabulary, (1, length)), 1) for _ in range(options.windows)]


def _vocabulary(source: Source) -> int:
    size = source.config.get("vocab_size")
    return size if isinstance(size, int) else 0


def _check_ids(ids: np.ndarray, vocabulary: int) -> None:
    if vocabulary and int(ids.max()) >= vocabulary:
        raise EvaluationError(
            f"The tokenizer gives id {int(ids.max())}, and the model's vocabulary has {vocabulary} entries: "
            "tokenizer.json belongs to another model. Put the right one beside the weights."
        )
