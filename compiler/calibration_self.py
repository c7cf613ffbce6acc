"""Calibration sequences that the model makes up, so that no data is needed."""

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxforge.compiler.calibration_tokens import tokenizer_of
from onnxforge.compiler.eval_text import bos_prefix
from onnxforge.compiler.proof_session import threads
from onnxforge.compiler.save import GRAPH, save_model
from onnxforge.models.source import Json, Source
from onnxforge.runtimes.decoder_graph import read_graph
from onnxforge.runtimes.plain_state import PlainState
from onnxforge.runtimes.session import open_session

_GREEDY = 4
"""Steps that take the likeliest token, before sampling starts."""
_ROWS = 8
"""Sequences decoded side by side."""


def sampled(model: ir.Model, source: Source, count: int, length: int, seed: int) -> np.ndarray:
    """int32 [count, length]: sequences that the decoder ``model`` writes, as it is now.

    Each starts with what the tokenizer puts in front of a text and one ordinary token drawn from the whole
    vocabulary; a few likeliest tokens follow, and the rest is drawn from the model's own distribution, its
    end of text left out. The first tokens settle on a subject; likeliest tokens alone would soon repeat
    themselves. Equal seeds give equal sequences on one machine.

    Source: Liu et al. 2023, LLM-QAT (2305.17888), section 2.1.
    """
    tokenizer = tokenizer_of(source)
    prefix = list(bos_prefix(tokenizer))[: length - 1] if tokenizer is not None else []
    ends = _end_ids(source)
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="onnxforge-self-") as temp:
        save_model(model, Path(temp))
        session = open_session(Path(temp) / GRAPH, "CPUExecutionProvider", {}, threads())
        graph = read_graph(session, "cpu", length, False, _vocabulary(source))
        found = []
        for start in range(0, count, _ROWS):
            rows = min(_ROWS, count - start)
            first = _first_tokens(source, graph.vocabulary, ends, rng, rows)
            tokens = np.concatenate([np.tile(np.array(prefix, np.int64), (rows, 1)), first[:, None]], axis=1)
            state = PlainState(graph, rows, ort.RunOptions())
            logits = state.prompt(list(tokens))
            for step in range(length - tokens.shape[1]):
                logits[:, ends] = -np.inf
                chosen = logits.argmax(axis=-1) if step < _GREEDY else _drawn(logits, rng)
                tokens = np.concatenate([tokens, chosen[:, None]], axis=1)
                logits = state.step(chosen[:, None], last_only=True)[:, -1]
            found.append(tokens.astype(np.int32))
    return np.concatenate(found)


def _drawn(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 [B]: one id a row, from the softmax of ``logits`` [B, V]."""
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)).cumsum(axis=-1)
    thresholds = rng.random(len(weights)) * weights[:, -1]
    places = (weights <= thresholds[:, None]).sum(axis=-1)
    chosen: np.ndarray = np.minimum(places, weights.shape[1] - 1)
    return chosen


def _first_tokens(
    source: Source, vocabulary: int, ends: list[int], rng: np.random.Generator, rows: int
) -> np.ndarray:
    tokenizer = tokenizer_of(source)
    special = set(ends)
    if tokenizer is not None:
        vocabulary = min(vocabulary, tokenizer.get_vocab_size())
        special |= {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ordinary = np.setdiff1d(np.arange(vocabulary), sorted(special))
    return rng.choice(ordinary if ordinary.size else np.arange(vocabulary), rows)


def _end_ids(source: Source) -> list[int]:
    """The ids that end a text."""
    given = source.config.get("eos_token_id")
    listed: list[Json] = given if isinstance(given, list) else [given]
    return [item for item in listed if isinstance(item, int) and item >= 0]


def _vocabulary(source: Source) -> int | None:
    size = source.config.get("vocab_size")
    return size if isinstance(size, int) else None
