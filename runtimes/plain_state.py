"""Decoding with a graph that returns a new, longer cache from every run."""

from collections.abc import Sequence

import numpy as np
import onnxruntime

from onnxforge.runtimes.binding import Floats, Int64s, StepBinding
from onnxforge.runtimes.decoder_graph import DecoderGraph
from onnxforge.runtimes.errors import ContextOverflow, RequestError
from onnxforge.runtimes.prompt_chunk import prompt_chunk


class PlainState:
    """A `DecoderState` whose rows share their cache slots; shorter prompts are padded at the left.

    A slot that holds padding stays masked for good, so every row's next token goes to the same new slot.
    """

    def __init__(self, graph: DecoderGraph, rows: int, run_options: onnxruntime.RunOptions) -> None:
        self._graph = graph
        self._binding = StepBinding(graph, run_options)
        self._mask = np.zeros((rows, 0), np.int64)
        self._past = self._room(0)

    @property
    def rows(self) -> int:
        """Sequences decoded side by side."""
        return self._mask.shape[0]

    @property
    def lengths(self) -> Int64s:
        """Tokens read so far, int64 [rows]."""
        found: Int64s = self._mask.sum(axis=1)
        return found

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache now."""
        return self.rows * self._mask.shape[1] * self._graph.cache_bytes_per_token

    def prompt(self, prompts: Sequence[Int64s]) -> Floats:
        """Read one prompt per row; logits float32 [rows, vocabulary] after each last token."""
        width = max(len(tokens) for tokens in prompts)
        padded = np.zeros((self.rows, width), np.int64)
        real = np.zeros((self.rows, width), np.int64)
        for row, tokens in enumerate(prompts):
            padded[row, width - len(tokens) :] = tokens
            real[row, width - len(tokens) :] = 1
        chunk = prompt_chunk(self._graph, self.rows)
        for start in range(0, width, chunk):
            part = slice(start, start + chunk)
            logits = self._run(padded[:, part], real[:, part], keep=1)
        return logits[:, -1]

    def step(self, tokens: Int64s, last_only: bool = False) -> Floats:
        """Read tokens [rows, n]; see `DecoderState.step`."""
        return self._run(tokens, np.ones_like(tokens), 1 if last_only else tokens.shape[1])

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens of every row."""
        if not 0 <= count <= int(self.lengths.min()):
            raise RequestError(f"Cannot rewind {count} tokens of {self.lengths.tolist()}.")
        kept = self._mask.shape[1] - count
        self._mask = self._mask[:, :kept]
        self._replace([value.numpy()[:, :, :kept] for value in self._past])

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        chosen = list(rows)
        self._mask = self._mask[chosen]
        self._replace([value.numpy()[chosen] for value in self._past])

    def _run(self, tokens: Int64s, real: Int64s, keep: int) -> Floats:
        mask = np.concatenate([self._mask, real], axis=1)
        longest = int(mask.sum(axis=1).max())
        if longest > self._graph.context_length:
            raise ContextOverflow(
                f"{longest} tokens do not fit the model's context of {self._graph.context_length}."
            )
        positions = None
        if self._graph.takes_positions:
            positions = np.maximum(mask.cumsum(axis=1)[:, -tokens.shape[1] :] - 1, 0)
        io, device, before = self._binding.io, self._graph.device, self._mask.shape[1]
        present = self._room(mask.shape[1])
        for tensor, old, new in zip(self._graph.cache, self._past, present, strict=True):
            kind = tensor.element.bound
            io.bind_input(tensor.past, device, 0, kind, tensor.shape(self.rows, before), old.data_ptr())
            io.bind_output(tensor.present, device, 0, kind, new.shape(), new.data_ptr())
        logits = self._binding.run(tokens, mask, positions, keep)
        self._past, self._mask = present, mask
        return logits

    def _room(self, tokens: int) -> list[onnxruntime.OrtValue]:
        """Memory for a cache of so many tokens, of any content."""
        return [
            onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                tensor.shape(self.rows, tokens), tensor.dtype.type, self._graph.device, 0
            )
            for tensor in self._graph.cache
        ]

    def _replace(self, arrays: list[np.ndarray[tuple[int, ...], np.dtype[np.number]]]) -> None:
        self._past = [
            onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._graph.device, 0)
            for array in arrays
        ]
