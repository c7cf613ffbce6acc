"""The speculative token loop: draft some tokens, read them in one step, keep those that are right.

    text   ... the cat sat on the|            one step reads     the   mat  and  it
    draft  mat  and  it                       its logits choose  mat   and  was
                                              emitted            mat   and  was      read again: nothing
                                              cache              rewound by 1 (it)

Leviathan, Kalman, Matias 2022 (arXiv:2211.17192) and Chen et al. 2023 (arXiv:2302.01318). Each emitted token
is chosen from logits that depend on nothing behind it, by the same code as in plain decoding: a greedy answer
is the one that plain decoding with `min_rows` of 2 gives, token for token, and so is an answer drawn with a
seed while drafts come from n-grams. A draft model's drawn tokens keep the distribution only; a seed repeats
them for the same draft model and `max_draft_tokens`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxforge.runtimes.answer import Answer
from onnxforge.runtimes.binding import Floats, Int64s
from onnxforge.runtimes.decoder_state import DecoderState
from onnxforge.runtimes.draft_length import DraftLength
from onnxforge.runtimes.draft_tally import DraftTally
from onnxforge.runtimes.drafter import Draft, Drafter
from onnxforge.runtimes.interruption import Interruption
from onnxforge.runtimes.result import Stats
from onnxforge.runtimes.step_cost import StepCost
from onnxforge.runtimes.token_loop import LoopClock, until_interrupted

_LONG_MATCH = 3


@dataclass(frozen=True)
class Source:
    """A drafter with what is known about its drafts."""

    drafter: Drafter
    length: DraftLength


class SpeculativeLoop:
    """A `TokenLoop` of one row."""

    def __init__(
        self,
        state: DecoderState,
        prompt: Int64s,
        answer: Answer,
        interruption: Interruption,
        sources: Sequence[Source],
        cost: StepCost,
    ) -> None:
        """`state` reads an even number of rows in every run. The last of `sources` drafts for nothing and
        always has a guess; one that costs something may come before it."""
        self._state = state
        self._prompt = prompt
        self._answer = answer
        self._interruption = interruption
        self._sources = tuple(sources)
        self._cost = cost
        self._tally = DraftTally()
        self._clock = LoopClock()

    def steps(self) -> Iterator[None]:
        """See `TokenLoop.steps`."""
        yield from until_interrupted(self._decode(), [self._answer], self._interruption)

    def _decode(self) -> Iterator[None]:
        answer = self._answer
        answer.extend(self._state.prompt([self._prompt])[0])
        self._clock.tick()
        yield
        self._tell([*self._prompt.tolist(), answer.tokens[-1]])
        while answer.finish_reason is None and self._interruption.reason is None:
            before = len(answer.tokens)
            self._step()
            self._clock.tick()
            self._tell(answer.tokens[before:])
            yield

    def _step(self) -> None:
        draft, source = self._draft(self._answer.room - 1)
        started = time.perf_counter()
        fed = np.array([[self._answer.tokens[-1], *draft.tokens]], np.int64)
        logits = self._state.step(fed)[0]
        self._cost.step_took(len(draft), time.perf_counter() - started)
        accepted, evaluated, emitted = self._verify(draft, logits)
        self._state.rewind(len(draft) - accepted)
        self._tally.add(len(draft), evaluated, accepted)
        for each in self._sources:
            if each is source:
                each.length.learn(draft, accepted, evaluated, emitted)
            else:
                each.length.learn_plain(emitted, source.length.time_for(draft))

    def _draft(self, room: int) -> tuple[Draft, Source]:
        """What this step verifies, `room` tokens at most, and where it comes from.

        A long match costs nothing and is right nearly always: it goes before a draft model's guesses.
        """
        first, free = self._sources[0], self._sources[-1]
        if room <= 0:
            return Draft(), free
        found = free.drafter.propose(free.length.wanted(room))
        if first is not free and found.classes[0] < _LONG_MATCH:
            draft = self._timed(first, room)
            if len(draft) > 0:
                return self._until_end(first.length.worthwhile(draft)), first
        return self._until_end(free.length.worthwhile(found)), free

    def _timed(self, source: Source, room: int) -> Draft:
        wanted = source.length.wanted(room)
        if wanted == 0:
            return Draft()
        started = time.perf_counter()
        draft = source.drafter.propose(wanted)
        self._cost.draft_took(len(draft), time.perf_counter() - started)
        return draft

    def _until_end(self, draft: Draft) -> Draft:
        """The draft without what comes after a token that ends the answer."""
        ends = (place for place, token in enumerate(draft.tokens) if self._answer.ends_with(token))
        return draft.first(next(ends, len(draft)) + 1)

    def _verify(self, draft: Draft, logits: Floats) -> tuple[int, int, int]:
        """Extend the answer from logits [1 + draft, vocabulary]; tokens accepted, looked at and emitted."""
        answer = self._answer
        for place, token in enumerate(draft.tokens):
            source = None if draft.distributions is None else draft.distributions[place]
            if not answer.verify(logits[place], token, source):
                return place, place + 1, place + 1
            if answer.finish_reason is not None:
                return place + 1, place + 1, place + 1
        answer.extend(logits[len(draft)])
        return len(draft), len(draft), len(draft) + 1

    def _tell(self, tokens: list[int]) -> None:
        for source in self._sources:
            source.drafter.read(tokens)

    def stats(self, row: int) -> Stats:
        """See `TokenLoop.stats`."""
        count = len(self._answer.tokens)
        found = self._tally.stats(max(count - 1, 0), self._sources[0].drafter.forward_passes)
        return self._clock.stats(len(self._prompt), count, found)
