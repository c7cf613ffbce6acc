"""Scoring the way an app decodes: token after token (or a few at once) over the cache, by the runtime."""

import numpy as np

from onnxforge.runtimes.decoder_graph import DecoderGraph
from onnxforge.runtimes.decoder_state import new_state

STEP = 16
"""Tokens per run where nothing else is asked for: few enough that most of attention is over the cache."""


class CachedSteps:
    """Logits of a window, read ``step`` tokens at a time from the cache that the earlier ones left.

    One whole run from an empty cache would say nothing of a cache that rounds, where a provider lets the
    tokens of one run see each other unrounded.
    """

    def __init__(self, graph: DecoderGraph, step: int = STEP) -> None:
        self._graph = graph
        self._step = step

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """float32 [S, V]: the next-token logits at every position of one sequence ``ids`` [1, S]."""
        state = new_state(self._graph, rows=1, capacity=ids.shape[1])
        said = np.empty((ids.shape[1], self._graph.vocabulary), np.float32)
        for start in range(0, ids.shape[1], self._step):
            part = slice(start, start + self._step)
            said[part] = state.step(ids[:, part])[0]
        return said
