"""The memory of a shared key/value cache, on the device that runs the graph."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime

from onnxforge.runtimes.decoder_graph import DecoderGraph

Lines = list[npt.NDArray[np.number]]
"""One array [rows, heads, tokens, head_dim] for each tensor of the cache, on the host."""


class CacheMemory:
    """Buffers for `rows` sequences of `capacity` tokens; they never move: captured steps rely on it."""

    def __init__(self, graph: DecoderGraph, rows: int, capacity: int, lines: Lines | None = None) -> None:
        """`lines` is what they hold at first, of `rows` and at most `capacity` tokens; nothing otherwise."""
        self.rows = rows
        self.capacity = capacity
        self._graph = graph
        self._buffers = [
            onnxruntime.OrtValue.ortvalue_from_numpy(array, graph.device, 0)
            for array in (self._filled(index, lines) for index in range(len(graph.cache)))
        ]

    def fill(self, lines: Lines | None = None) -> None:
        """Begin anew with `lines`, as a new memory does."""
        for index, buffer in enumerate(self._buffers):
            buffer.update_inplace(self._filled(index, lines))

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, room for tokens to come included."""
        return self.rows * self.capacity * self._graph.cache_bytes_per_token

    def bind(self, io: onnxruntime.IOBinding, first: int, rows: int) -> None:
        """Bind `rows` rows from the row `first` on to both past and present of `io`."""
        device = self._graph.device
        for tensor, buffer in zip(self._graph.cache, self._buffers, strict=True):
            shape = tensor.shape(rows, self.capacity)
            address = buffer.data_ptr() + first * self.capacity * tensor.bytes_per_token
            io.bind_input(tensor.past, device, 0, tensor.element.bound, shape, address)
            io.bind_output(tensor.present, device, 0, tensor.element.bound, shape, address)

    def read(self, rows: Sequence[int], tokens: int) -> Lines:
        """The first `tokens` lines of these rows."""
        return [buffer.numpy()[list(rows), :, :tokens] for buffer in self._buffers]

    def _filled(self, index: int, lines: Lines | None) -> npt.NDArray[np.number]:
        # zeros, not empty: lines past a row's end are multiplied by a weight of 0, and 0 * NaN is NaN
        tensor = self._graph.cache[index]
        array = np.zeros(tensor.shape(self.rows, self.capacity), tensor.dtype)
        if lines is not None:
            array[:, :, : lines[index].shape[2]] = lines[index]
        return array
