"""Does decoding say what one run over the whole text says? The cached steps of a proof.

Perplexity runs whole windows from an empty cache. An app does not: it reads a prompt, then steps token by
token over the cache, with several rows side by side. The runtime does that here, over the same tokens, and
every step's logits are held against the same artifact's logits of one whole run::

    row 0   [ prompt of 9 ][ step ][ step ] ...
    row 1   [ prompt of 16 ][ step ][ step ] ...      one state, ragged
    row 2   [ prompt of 31 ][ step ][ step ] ...

The artifact is compared with itself, so that what is found is the fault of steps, cache and batch and not
of quantization, which perplexity measures.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxforge.runtimes.decoder_graph import DecoderGraph
from onnxforge.runtimes.decoder_state import new_state

_PROMPTS = (9, 16, 31)
_STEPS = 12


class Whole(Protocol):
    """Anything that answers next-token logits, float32 [S, V], for ids int64 [1, S]."""

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Logits at every position."""
        ...


@dataclass(frozen=True)
class DecodingParity:
    """Cached steps of a ragged batch against whole runs of the same artifact."""

    positions: int
    """Logit vectors compared: each row's prompt and its steps."""
    max_relative: float
    """Largest absolute difference over the largest magnitude of the whole run's logits."""
    top1_agreement: float
    """Share of positions where both put the same token first."""


def decoding_parity(
    whole: Whole, graph: DecoderGraph, ids: np.ndarray, context: int
) -> DecodingParity | None:
    """Step ``graph`` through the first tokens of ``ids`` int64 [1, S] in rows of different lengths.

    None when the text or the context is too short for three rows.
    """
    longest = max(_PROMPTS) + _STEPS
    if min(ids.shape[1], context) < longest:
        return None
    tokens = ids[0, :longest]
    expected = whole.logits(tokens[None, :])
    found = _decoded(graph, tokens)
    places = [np.arange(length - 1, length + _STEPS) for length in _PROMPTS]
    meant = np.concatenate([expected[place] for place in places])
    got = np.concatenate([found[:, row] for row in range(len(_PROMPTS))])
    return DecodingParity(
        positions=len(meant),
        max_relative=float(np.abs(got - meant).max() / max(np.abs(meant).max(), 1e-30)),
        top1_agreement=float(np.mean(got.argmax(axis=-1) == meant.argmax(axis=-1))),
    )


def _decoded(graph: DecoderGraph, tokens: np.ndarray) -> np.ndarray:
    """float32 [1 + steps, rows, V]: logits after each row's prompt, then after each of its next tokens."""
    state = new_state(graph, len(_PROMPTS), max(_PROMPTS))  # too small: it grows on the way
    said = [state.prompt([tokens[:length] for length in _PROMPTS]).copy()]
    for step in range(_STEPS):
        following = np.array([[tokens[length + step]] for length in _PROMPTS])
        said.append(state.step(following)[:, -1].copy())
    return np.stack(said)
