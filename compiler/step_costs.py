"""What a step costs by its number of rows, and whether rows depend on one another.

A step that verifies drafts reads several tokens at once. Three facts decide whether that can pay and whether
it is exact: the seconds of a step of k rows over those of one row, whether a token's logits depend on how
many rows are beside it, and how far the one-row kernels are from those for many rows.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxforge.runtimes.binding import Int64s
from onnxforge.runtimes.decoder_graph import DecoderGraph
from onnxforge.runtimes.decoder_state import DecoderState, new_state
from onnxforge.runtimes.step_cost import along

MOST_ROWS = 16
CONTEXTS = (64, 512)
"""Tokens in the cache while steps are timed; between them the cost is interpolated."""
_CHECKED = (64, 511)
"""Tokens in the cache while rows are compared: an even number and an odd one."""
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 25
_PATIENCE = 1.5
"""Seconds after which no further round starts, for each context."""


@dataclass(frozen=True)
class StepCosts:
    """The medians of steps of 1, 2, ... rows over a cache of ``context`` tokens."""

    context: int
    seconds: tuple[float, ...]
    """Of a step of 1 row, 2 rows and so on, the choice of the best token of each row included; from 2 rows on
    they do not fall (:func:`rising`)."""

    def of(self, rows: int) -> float:
        """Seconds of a step of ``rows`` rows; beyond those measured it goes on as it does on average."""
        return along(self.seconds, rows)

    @property
    def ratios(self) -> tuple[float, ...]:
        """t(k)/t(1) for k = 1, 2, ..."""
        return tuple(s / self.seconds[0] for s in self.seconds)


@dataclass(frozen=True)
class RowConsistency:
    """Whether a token's logits depend on the rows beside it. Differences are the largest of any logit."""

    positions: int
    """Compared with a step of two rows, for all even numbers together."""
    even_rows: float
    """Between steps of 2 and of 4, 6, ... rows: 0 where drafts are to change nothing."""
    odd_rows: float
    """Between steps of 2 and of 3, 5, ... rows: kernels that go by pairs may differ in the last one."""
    single_row: float
    """Between steps of 1 row, which plain decoding takes, and of 2."""
    single_row_flips: int
    """Positions whose likeliest token differs between those."""
    single_positions: int
    """Positions compared for that."""

    @property
    def is_exact(self) -> bool:
        """Whether even steps agree bit for bit, so that drafts cannot change the text."""
        return self.even_rows == 0.0


def cost_of(costs: Sequence[StepCosts], rows: int, context: float) -> float:
    """Seconds of a step of ``rows`` rows over ``context`` tokens: between the contexts by a straight line."""
    return float(np.interp(context, [cost.context for cost in costs], [cost.of(rows) for cost in costs]))


def measure_costs(graph: DecoderGraph, tokens: Int64s) -> tuple[StepCosts, ...]:
    """Time steps of 1 to 16 rows, in turns, at each context that fits. ``tokens`` int64 [n] are read."""
    room = min(graph.context_length, len(tokens)) - MOST_ROWS
    contexts = dict.fromkeys(min(context, room) for context in CONTEXTS)
    return tuple(_costs_at(graph, tokens, context) for context in contexts if context > 0)


def _costs_at(graph: DecoderGraph, tokens: Int64s, context: int) -> StepCosts:
    state = _read(graph, tokens[:context])
    following = tokens[None, context : context + MOST_ROWS]
    spent: list[list[float]] = [[] for _ in range(MOST_ROWS)]
    deadline = time.perf_counter() + _PATIENCE
    for number in range(-1, _MOST_ROUNDS):
        if number >= _LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        for rows in range(1, MOST_ROWS + 1) if number % 2 else range(MOST_ROWS, 0, -1):
            started = time.perf_counter()
            state.step(following[:, :rows])[0].argmax(axis=-1)
            took = time.perf_counter() - started
            state.rewind(rows)
            if number >= 0:  # the first round wakes threads and lets ONNX Runtime plan each shape
                spent[rows - 1].append(took)
    medians = [statistics.median(times) for times in spent]
    return StepCosts(context, (medians[0], *rising(medians[1:])))


def rising(values: Sequence[float]) -> tuple[float, ...]:
    """The nearest values (least squares) of which none is below the one before: neighbours in the wrong order
    are averaged (pool adjacent violators, Ayer et al. 1955).

    A step of k rows can always be read as one of more rows, so what a curve of steps falls by is noise, and
    noise of this kind would have the runtime draft more than pays.
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (last, n), (before, m) = pools.pop(), pools.pop()
            pools.append(((last * n + before * m) / (n + m), n + m))
    return tuple(mean for mean, count in pools for _ in range(count))


def check_rows(graph: DecoderGraph, tokens: Int64s, most: int = MOST_ROWS) -> RowConsistency:
    """Read the same tokens, int64 [n], in steps of 2, of every number up to ``most`` (even), and of one.

    Both places matter: a row is compared at the start of a step, in its middle and at its end, and what
    follows it differs (a step of 2 sees the next token, a longer one more of them).
    """
    room = min(graph.context_length, len(tokens)) - most
    compared, even, odd, single, flips, lone_count = 0, 0.0, 0.0, 0.0, 0, 0
    for context in dict.fromkeys(min(context, room) for context in _CHECKED):
        state = _read(graph, tokens[:context])
        following = tokens[context : context + most]
        pairs = _in_steps(state, following, 2)
        for rows in range(3, most + 1):
            found = state.step(following[None, :rows])[0]
            difference = float(np.abs(found - pairs[:rows]).max())
            state.rewind(rows)
            if rows % 2:
                odd = max(odd, difference)
            else:
                even, compared = max(even, difference), compared + rows
        lone = _in_steps(state, following, 1)
        single = max(single, float(np.abs(lone - pairs).max()))
        flips += int(np.sum(lone.argmax(axis=-1) != pairs.argmax(axis=-1)))
        lone_count += len(lone)
    return RowConsistency(compared, even, odd, single, flips, lone_count)


def _read(graph: DecoderGraph, tokens: Int64s) -> DecoderState:
    state = new_state(graph, 1, len(tokens) + MOST_ROWS)
    state.prompt([tokens])
    return state


def _in_steps(state: DecoderState, tokens: Int64s, rows: int) -> np.ndarray:
    """Logits float32 [n, vocabulary] of ``tokens``, read ``rows`` at a time; the state is as before."""
    parts = [state.step(tokens[None, i : i + rows])[0].copy() for i in range(0, len(tokens), rows)]
    state.rewind(len(tokens))
    return np.concatenate(parts)
