"""Decoding over one growing key/value buffer that every GroupQueryAttention node writes in place."""

from collections.abc import Sequence

import numpy as np
import onnxruntime

from onnxforge.runtimes.binding import Floats, Int64s, StepBinding
from onnxforge.runtimes.decoder_graph import CacheTensor, DecoderGraph
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
        self._capacity = 0
        self._buffers: list[onnxruntime.OrtValue] = []
        self._ones = np.empty(0, np.int64)
        self._allocate(_round_up(capacity, graph.context_length))

    @property
    def rows(self) -> int:
        """Sequences decoded side by side."""
        return len(self._lengths)

    @property
    def lengths(self) -> Int64s:
        """Tokens read so far, int64 [rows]."""
        return self._lengths.copy()

    @property
    def capacity(self) -> int:
        """Tokens per row that fit without growing."""
        return self._capacity

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache's buffers now, room for tokens to come included."""
        return self.rows * self._capacity * self._graph.cache_bytes_per_token

    def prompt(self, prompts: Sequence[Int64s]) -> Floats:
        """Read one prompt per row; logits float32 [rows, vocabulary] after each last token."""
        counts = [len(tokens) + self._spare(len(tokens)) for tokens in prompts]
        self._reserve(int((self._lengths + counts).max()))
        if self.rows == 1:
            return self._read_row(self._binding, 0, prompts[0])
        found = np.empty((self.rows, self._graph.vocabulary), np.float32)
        for row, tokens in enumerate(prompts):
            binding = StepBinding(self._graph, self._run_options)
            self._bind_cache(binding, row, 1)
            found[row] = self._read_row(binding, row, tokens)[0]
        return found

    def step(self, tokens: Int64s, last_only: bool = False) -> Floats:
        """Read tokens [rows, n], n = 1 when there is more than one row; see `DecoderState.step`."""
        if self.rows > 1 and tokens.shape[1] != 1:
            raise RequestError(
                "GroupQueryAttention reads several tokens at once for one row only; step by one."
            )
        count = tokens.shape[1]
        self._reserve(int(self._lengths.max()) + count + self._spare(count))
        return self._run(self._binding, slice(None), tokens, 1 if last_only else count)

    def skim(self, token: int) -> Floats:
        """Read one token of one row without the layers that the graph can leave out; logits float32
        [vocabulary].

        The token counts as read until it is rewound, as it has to be: the lines that it wrote are not those
        of the model. Its run is of one row whatever `min_rows` is, since no answer depends on its last bits.
        """
        self._reserve(int(self._lengths.max()) + 1)
        logits: Floats = self._run(self._binding, slice(None), np.array([[token]]), 1, skim=True)[0, -1]
        return logits

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens of every row: the lines stay and are overwritten."""
        if not 0 <= count <= int(self._lengths.min()):
            raise RequestError(f"Cannot rewind {count} tokens of {self._lengths.tolist()}.")
        self._lengths -= count

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        chosen = list(rows)
        self._lengths = self._lengths[chosen]
        self._replace([np.ascontiguousarray(buffer.numpy()[chosen]) for buffer in self._buffers])

    def _read_row(self, binding: StepBinding, row: int, tokens: Int64s) -> Floats:
        chunk = prompt_chunk(self._graph, 1)
        chunk = max(chunk - chunk % self._min_rows, self._min_rows)
        for start in range(0, len(tokens), chunk):
            part = tokens[None, start : start + chunk]
            logits = self._run(binding, slice(row, row + 1), part, keep=1)
        return logits[:, -1]

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
        self._lengths[rows] = before + count
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
        if needed > self._capacity:
            self._allocate(_round_up(max(needed, 2 * self._capacity), limit))

    def _allocate(self, capacity: int) -> None:
        """Make room for `capacity` tokens per row and carry over what was read."""
        filled = int(self._lengths.max())
        arrays = []
        for index, tensor in enumerate(self._graph.cache):
            # zeros, not empty: lines past a row's end are multiplied by a weight of 0, and 0 * NaN is NaN
            array = np.zeros(_shape(tensor, self.rows, capacity), tensor.dtype)
            if filled:
                array[:, :, :filled] = self._buffers[index].numpy()[:, :, :filled]
            arrays.append(array)
        self._capacity = capacity
        self._replace(arrays)

    def _replace(self, arrays: list[np.ndarray[tuple[int, ...], np.dtype[np.number]]]) -> None:
        self._buffers = [
            onnxruntime.OrtValue.ortvalue_from_numpy(array, self._graph.device, 0) for array in arrays
        ]
        self._ones = np.ones(self.rows * self._capacity, np.int64)
        self._bind_cache(self._binding, 0, self.rows)

    def _bind_cache(self, binding: StepBinding, first: int, rows: int) -> None:
        for tensor, buffer in zip(self._graph.cache, self._buffers, strict=True):
            shape = _shape(tensor, rows, self._capacity)
            address = buffer.data_ptr() + first * int(np.prod(shape[1:])) * tensor.dtype.itemsize
            kind = tensor.dtype.type
            binding.io.bind_input(tensor.past, self._graph.device, 0, kind, shape, address)
            binding.io.bind_output(tensor.present, self._graph.device, 0, kind, shape, address)


def _shape(tensor: CacheTensor, rows: int, capacity: int) -> tuple[int, int, int, int]:
    return rows, tensor.heads, capacity, tensor.head_dim


def _round_up(tokens: int, limit: int) -> int:
    return min(-(-tokens // _GRAIN) * _GRAIN, limit)
