"""The token loop: read the prompts, then one step per token until every answer is finished."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from onnxforge.runtimes.answer import Answer
from onnxforge.runtimes.binding import Int64s
from onnxforge.runtimes.decoder_graph import DecoderGraph
from onnxforge.runtimes.decoder_state import new_state
from onnxforge.runtimes.interruption import Interruption
from onnxforge.runtimes.result import Stats

_HEADROOM = 256
"""New tokens that the first cache allocation has room for; longer answers grow it."""


class DecodeLoop:
    """One request of one or more rows; iterate `steps` to run it."""

    def __init__(
        self,
        graph: DecoderGraph,
        prompts: Sequence[Int64s],
        answers: Sequence[Answer],
        new_tokens: int,
        interruption: Interruption,
    ) -> None:
        self._prompts = prompts
        self._answers = answers
        self._interruption = interruption
        self._started = time.perf_counter()
        self._first = self._last = self._started
        capacity = max(len(tokens) for tokens in prompts) + min(new_tokens, _HEADROOM)
        self._state = new_state(graph, len(prompts), capacity, interruption.run_options)

    def steps(self) -> Iterator[None]:
        """Yields after each token; returns when all answers are finished or the request was interrupted."""
        try:
            yield from self._decode()
        except RuntimeError:
            if self._interruption.reason is None:
                raise
        for answer in self._answers:
            if answer.finish_reason is None:
                answer.finish_reason = self._interruption.reason

    def _decode(self) -> Iterator[None]:
        active = list(self._answers)
        logits = self._state.prompt(self._prompts)
        self._first = time.perf_counter()
        tokens = np.empty((len(active), 1), np.int64)
        while True:
            for row, answer in enumerate(active):
                answer.extend(logits[row])
                tokens[row, 0] = answer.tokens[-1]
            self._last = time.perf_counter()
            yield
            going = [row for row, answer in enumerate(active) if answer.finish_reason is None]
            if not going or self._interruption.reason is not None:
                return
            if len(going) < len(active):
                self._state.keep_rows(going)
                active = [active[row] for row in going]
                tokens = tokens[going]
            logits = self._state.step(tokens)[:, 0]

    def stats(self, row: int) -> Stats:
        """Counts and speeds of one row."""
        count, prompt = len(self._answers[row].tokens), len(self._prompts[row])
        to_first, decoding = self._first - self._started, self._last - self._first
        return Stats(
            prompt_tokens=prompt,
            new_tokens=count,
            time_to_first_token_s=to_first,
            prefill_tokens_per_s=prompt / to_first if to_first > 0 else 0.0,
            decode_tokens_per_s=(count - 1) / decoding if count > 1 and decoding > 0 else 0.0,
        )
