"""The plain token loop: read the prompts, then one step per token until every answer is finished."""

from collections.abc import Iterator, Sequence

import numpy as np

from onnxforge.runtimes.answer import Answer
from onnxforge.runtimes.binding import Int64s
from onnxforge.runtimes.decoder_graph import DecoderGraph
from onnxforge.runtimes.decoder_state import new_state
from onnxforge.runtimes.interruption import Interruption
from onnxforge.runtimes.result import Stats
from onnxforge.runtimes.token_loop import LoopClock, until_interrupted

HEADROOM = 256
"""New tokens that the first cache allocation has room for; longer answers grow it."""


class DecodeLoop:
    """A `TokenLoop` of one or more rows."""

    def __init__(
        self,
        graph: DecoderGraph,
        prompts: Sequence[Int64s],
        answers: Sequence[Answer],
        new_tokens: int,
        interruption: Interruption,
        min_rows: int = 1,
    ) -> None:
        self._prompts = prompts
        self._answers = answers
        self._interruption = interruption
        self._clock = LoopClock()
        capacity = max(len(tokens) for tokens in prompts) + min(new_tokens, HEADROOM)
        self._state = new_state(graph, len(prompts), capacity, interruption.run_options, min_rows)

    def steps(self) -> Iterator[None]:
        """See `TokenLoop.steps`."""
        yield from until_interrupted(self._decode(), self._answers, self._interruption)

    def _decode(self) -> Iterator[None]:
        active = list(self._answers)
        logits = self._state.prompt(self._prompts)
        tokens = np.empty((len(active), 1), np.int64)
        while True:
            for row, answer in enumerate(active):
                answer.extend(logits[row])
                tokens[row, 0] = answer.tokens[-1]
            self._clock.tick()
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
        """See `TokenLoop.stats`."""
        return self._clock.stats(len(self._prompts[row]), len(self._answers[row].tokens))
