"""The small tensors of a decoder run, bound once and rewritten in place."""

import math

import numpy as np
import numpy.typing as npt
import onnxruntime

from onnxforge.runtimes.decoder_graph import LOGITS_TO_KEEP, SKIP_LAYERS, DecoderGraph
from onnxforge.runtimes.elements import Floats as Floats

Int64s = npt.NDArray[np.int64]

_MOST_SPARE = 32
"""Logits memory is kept for smaller steps up to this ratio; a prompt's gives way to that of its answer."""


class StepBinding:
    """Token ids, mask, positions and logits of one request's runs; the cache binds itself to `io`.

    A decode step rewrites two one-token buffers and rebinds the mask, whose length changed: nothing else.
    Steps of other lengths, as drafts make them, bind other views of the same memory: new memory for every
    length would cost its page faults, more than the rest of the overhead together.
    """

    def __init__(self, graph: DecoderGraph, run_options: onnxruntime.RunOptions) -> None:
        self.io = graph.session.io_binding()
        self._graph = graph
        self._run_options = run_options
        self._tokens = np.empty((0, 0), np.int64)
        self._positions = np.empty((0, 0), np.int64)
        self._logits = np.empty((0, 0, 0), graph.logits.storage)
        self._memory = self._logits.reshape(-1)
        self._optional: dict[str, int] = {}
        self._mask: Int64s | None = None

    def run(
        self, tokens: Int64s, mask: Int64s, positions: Int64s | None, keep: int, skip_layers: bool = False
    ) -> Floats:
        """One run over tokens [rows, n] with mask [rows, total] and positions [rows, n] (if it takes any).

        With `skip_layers` it leaves out what the graph can leave out. Returns the logits of the last `keep`
        tokens, [rows, keep, vocabulary]. The next run writes over them.
        """
        graph, count = self._graph, tokens.shape[1]
        if tokens.shape == self._tokens.shape and graph.on_host:
            self._tokens[...] = tokens
            if positions is not None:
                self._positions[...] = positions
        else:
            self._tokens = tokens.copy()
            self._bind("input_ids", self._tokens)
            if positions is not None:
                self._positions = positions.copy()
                self._bind("position_ids", self._positions)
        self._bind("attention_mask", mask)
        self._mask = mask  # the binding holds a bare address: keep the memory alive
        if graph.keeps_logits:
            self._bind_optional(LOGITS_TO_KEEP, 0 if keep == count else keep, ())
        if graph.skips_layers:
            self._bind_optional(SKIP_LAYERS, int(skip_layers), (1,))
        self._bind_logits((tokens.shape[0], keep if graph.keeps_logits else count, graph.vocabulary))
        with graph.turn:
            graph.session.run_with_iobinding(self.io, self._run_options)
        return graph.logits.to_float32(self._logits[:, -keep:])

    def _bind(self, name: str, array: Int64s) -> None:
        if name in self._graph.inputs:
            self.io.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)

    def _bind_optional(self, name: str, value: int, shape: tuple[int, ...]) -> None:
        if self._optional.get(name) == value:
            return
        self._optional[name] = value
        # bind_cpu_input and bind_input refuse an overridable initializer
        number = onnxruntime.OrtValue.ortvalue_from_numpy(np.full(shape, value, np.int64))
        self.io.bind_ortvalue_input(name, number)

    def _bind_logits(self, shape: tuple[int, int, int]) -> None:
        if self._logits.shape == shape:
            return
        size = math.prod(shape)
        if not size <= len(self._memory) <= _MOST_SPARE * size:
            self._memory = np.empty(size, self._graph.logits.storage)
        self._logits = self._memory[:size].reshape(shape)
        kind = self._graph.logits.bound
        self.io.bind_output("logits", "cpu", 0, kind, shape, self._logits.ctypes.data)
