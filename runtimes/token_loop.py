"""What every token loop shares: its interface, its clock, and how an interruption ends it."""

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from onnxforge.runtimes.answer import Answer
from onnxforge.runtimes.interruption import Interruption
from onnxforge.runtimes.result import SpeculativeStats, Stats


class TokenLoop(Protocol):
    """One request being decoded."""

    def steps(self) -> Iterator[None]:
        """Yields after each step; returns when all answers are finished or the request was interrupted."""

    def stats(self, row: int) -> Stats:
        """Counts and speeds of one row."""


def until_interrupted(
    steps: Iterator[None], answers: Sequence[Answer], interruption: Interruption
) -> Iterator[None]:
    """`steps`, ended by an interruption too: unfinished answers then finish with its reason."""
    try:
        yield from steps
    except RuntimeError:
        if interruption.reason is None:
            raise
    for answer in answers:
        if answer.finish_reason is None:
            answer.finish_reason = interruption.reason


class LoopClock:
    """When a request began, and when its first and its latest tokens came."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._first: float | None = None
        self._last = self._started

    def tick(self) -> None:
        """Tokens came."""
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last

    def stats(self, prompt: int, count: int, speculative: SpeculativeStats | None = None) -> Stats:
        """The speeds of a request that read `prompt` tokens and wrote `count`."""
        first = self._started if self._first is None else self._first
        to_first, decoding = first - self._started, self._last - first
        return Stats(
            prompt_tokens=prompt,
            new_tokens=count,
            time_to_first_token_s=to_first,
            prefill_tokens_per_s=prompt / to_first if to_first > 0 else 0.0,
            decode_tokens_per_s=(count - 1) / decoding if count > 1 and decoding > 0 else 0.0,
            speculative=speculative,
        )
