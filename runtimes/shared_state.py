"""Decoding over one growing key/value buffer that every GroupQueryAttention node writes in place."""

import weakref
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime

from onnxforge.runtimes.binding import Floats, Int64s, StepBinding
from onnxforge.runtimes.cache_memory import CacheMemory, Lines
from onnxforge.runtimes.captured_steps import LONGEST
from onnxforge.runtimes.decoder_graph import DecoderGraph
from onnxforge.runtimes.errors import ContextOverflow, RequestError
from onnxforge.runtimes.prompt_chunk import prompt_chunk

_GRAIN = 64


class SharedState:
    """A `DecoderState` whose cache lines are at their true positions, row by row (padding only at the right).

    GroupQueryAttention finds a row's length by counting its attention_mask, and writes new keys right there;
    several tokens at once after the first run are possible for one row only. So prompts are read row by row,
    each straight into its own lines of the common buffer: no padding is computed, and a row's prompt gives
    the same numbers as it does alone.

    Kernels that work on rows by pairs (or more) have another form for a single one, which rounds otherwise:
    GroupQueryAttention and MatMulNBits for a run of one token, and both for the last token of some odd runs.
    With `min_rows` of 2 every run is even, and even runs of any lengths agree bit for bit. A run that would
    be odd reads its last token again, behind it, and forgets that.
    """

    def __init__(
        self,
        graph: DecoderGraph,
        rows: int,
        capacity: int,
        run_options: onnxruntime.RunOptions,
        min_rows: int = 1,
    ) -> None:
        self._graph = graph
        self._run_options = run_options
        self._min_rows = min_rows
        self._binding = StepBinding(graph, run_options)
        self._lengths = np.zeros(rows, np.int64)
        self._alive = np.arange(rows)
        self._ones = np.empty(0, np.int64)
        self._give_back: Callable[[], object] = lambda: None
        self._memory = self._allocate(rows, capacity)

    @property
    def rows(self) -> int:
        """Sequences decoded side by side."""
        return len(self._alive)

    @property
    def lengths(self) -> Int64s:
        """Tokens read so far, int64 [rows]."""
        return self._lengths[self._alive]

    @property
    def capacity(self) -> int:
        """Tokens per row that fit without growing."""
        return self._memory.capacity

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache's buffers now, room for tokens to come included."""
        return self._memory.nbytes

    def prompt(self, prompts: Sequence[Int64s]) -> Floats:
        """Read one prompt per row; logits float32 [rows, vocabulary] after each last token."""
        counts = [len(tokens) + self._spare(len(tokens)) for tokens in prompts]
        self._reserve(int((self.lengths + counts).max()))
        if self._memory.rows == 1:
            return self._read_row(self._binding, 0, prompts[0])
        found = np.empty((self.rows, self._graph.vocabulary), np.float32)
        for place, tokens in enumerate(prompts):
            row = int(self._alive[place])
            binding = StepBinding(self._graph, self._run_options)
            self._memory.bind(binding.io, row, 1)
            found[place] = self._read_row(binding, row, tokens)[0]
        return found

    def step(self, tokens: Int64s, last_only: bool = False) -> Floats:
        """Read tokens [rows, n], n = 1 when there is more than one row; see `DecoderState.step`."""
        if self.rows > 1 and tokens.shape[1] != 1:
            raise RequestError(
                "GroupQueryAttention reads several tokens at once for one row only; step by one."
            )
        count = tokens.shape[1]
        self._reserve(int(self._lengths.max()) + count + self._spare(count))
        some = self.rows < self._memory.rows
        if some:  # rows that ended read anything, each over its own line behind its end
            every = np.zeros((self._memory.rows, count), np.int64)
            every[self._alive] = tokens
            tokens = every
        logits = self._step(tokens, 1 if last_only else count)
        self._lengths[self._alive] += count
        return logits[self._alive] if some else logits

    def skim(self, token: int) -> Floats:
        """Read one token of one row without the layers that the graph can leave out; logits float32
        [vocabulary].

        The token counts as read until it is rewound, as it has to be: the lines that it wrote are not those
        of the model. Its run is of one row whatever `min_rows` is, since no answer depends on its last bits.
        """
        self._reserve(int(self._lengths.max()) + 1)
        logits = self._run(self._binding, slice(None), np.array([[token]]), 1, skim=True)
        self._lengths += 1
        found: Floats = logits[0, -1]
        return found

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens of every row: the lines stay and are overwritten."""
        if not 0 <= count <= int(self.lengths.min()):
            raise RequestError(f"Cannot rewind {count} tokens of {self.lengths.tolist()}.")
        self._lengths[self._alive] -= count

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows only.

        Rows move together through the host's memory. On a device that costs more than to compute some for
        nobody, so there they do when half are left.
        """
        self._alive = self._alive[list(rows)]
        if not self._graph.on_host and 2 * len(self._alive) > self._memory.rows:
            return
        lines = self._memory.read(self._alive.tolist(), int(self._lengths.max()))
        self._lengths = self._lengths[self._alive]
        self._alive = np.arange(len(self._alive))
        self._memory = self._allocate(len(self._alive), self._memory.capacity, lines)

    def _read_row(self, binding: StepBinding, row: int, tokens: Int64s) -> Floats:
        chunk = prompt_chunk(self._graph, 1)
        chunk = max(chunk - chunk % self._min_rows, self._min_rows)
        for start in range(0, len(tokens), chunk):
            part = tokens[None, start : start + chunk]
            logits = self._run(binding, slice(row, row + 1), part, keep=1)
            self._lengths[row] += part.shape[1]
        return logits[:, -1]

    def _step(self, tokens: Int64s, keep: int) -> Floats:
        """Logits of the last `keep` of tokens [rows, n], one run over all rows of the memory."""
        count, captured = tokens.shape[1], self._graph.captured_steps

        def plain() -> Floats:
            return self._run(self._binding, slice(None), tokens, keep)

        if captured is None or count != keep or count > LONGEST or self._spare(count):
            return plain()
        return captured.run(self._graph, self._memory, tokens, self._lengths, plain)

    def _run(
        self, binding: StepBinding, rows: slice, tokens: Int64s, keep: int, skim: bool = False
    ) -> Floats:
        before, count = self._lengths[rows], tokens.shape[1]
        spare = 0 if skim else self._spare(count)
        if spare:
            tokens = np.concatenate([tokens, np.repeat(tokens[:, -1:], spare, axis=1)], axis=1)
        positions = before[:, None] + np.arange(count + spare) if self._graph.takes_positions else None
        kept = keep + spare
        kept += 0 if skim else self._spare(kept)  # the head's kernels too work on rows by pairs
        logits = binding.run(tokens, self._mask(before + count + spare), positions, kept, skim)
        last = kept - spare
        return logits[:, last - keep : last]

    def _spare(self, count: int) -> int:
        """Rows that a run of `count` tokens needs besides."""
        return -count % self._min_rows

    def _mask(self, lengths: Int64s) -> Int64s:
        if len(lengths) == 1:
            return self._ones[: lengths.item()].reshape(1, -1)
        total = int(lengths.max())
        if int(lengths.min()) == total:
            return self._ones[: len(lengths) * total].reshape(len(lengths), total)
        return (np.arange(total) < lengths[:, None]).astype(np.int64)

    def _reserve(self, needed: int) -> None:
        limit = self._graph.context_length
        if needed > limit:
            raise ContextOverflow(f"{needed} tokens do not fit the model's context of {limit}.")
        if needed > self.capacity:
            rows = self._memory.rows
            lines = self._memory.read(range(rows), int(self._lengths.max()))
            self._memory = self._allocate(rows, max(needed, 2 * self.capacity), lines)

    def _allocate(self, rows: int, tokens: int, lines: Lines | None = None) -> CacheMemory:
        """Memory for `rows` sequences of at least `tokens` tokens that holds `lines`, bound for all rows."""
        captured = self._graph.captured_steps
        if captured is None:
            room = _round_up(tokens, self._graph.context_length)
            memory = CacheMemory(self._graph, rows, room, lines)
        else:
            memory = captured.take(self._graph, rows, tokens, lines)
            self._give_back()
            self._give_back = weakref.finalize(self, captured.give_back, memory)
        self._ones = np.ones(rows * memory.capacity, np.int64)
        memory.bind(self._binding.io, 0, rows)
        return memory


def _round_up(tokens: int, limit: int) -> int:
    return min(-(-tokens // _GRAIN) * _GRAIN, limit)
