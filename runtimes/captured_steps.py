"""Steps recorded as CUDA graphs: a GPU replays all their kernels at one command.

    plain      for each of some 300 kernels: choose, launch        0.3 ms of CPU time per step and up
    captured   ids, mask --copied into fixed memory--> replay      one launch

What is recorded are addresses and sizes, so a captured step has fixed ones: the cache's memory, tokens
[rows, n], and a mask as long as the cache has room, zero behind each row's end. GroupQueryAttention takes
the lengths from the mask, on the device.

ONNX Runtime records a run when it first meets its ``gpu_graph_id``, for each thread anew, and never forgets
one; so ids belong to memories, and memories wait for the next request of their size.
"""

import itertools
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime

from onnxforge.runtimes.binding import Floats, Int64s
from onnxforge.runtimes.cache_memory import CacheMemory, Lines
from onnxforge.runtimes.decoder_graph import DecoderGraph
from onnxforge.runtimes.session import new_run_options

LONGEST = 32
"""Tokens of a captured step, at most: one, or one and its draft."""
_KEPT = 8
"""Memories that wait for a next request, at most."""
_LEAST = 256
_AGREE = 0.02
_DEVICE = threading.Lock()
"""CUDA refuses to record while another thread of the process allocates: runs of such sessions take turns."""
_numbers = itertools.count(1)


class CapturedSteps:
    """One session's recorded steps, and the memories that they write to. For any number of threads.

    The very first one is computed the plain way too. Where recording fails, or its logits are others, a
    RuntimeWarning says so and every step of the session is a plain one from then on.
    """

    def __init__(self) -> None:
        self.turn = _DEVICE
        self._free = deque[CacheMemory]()
        self._steps: dict[CacheMemory, dict[int, _CapturedStep]] = {}
        self._works: bool | None = None

    def take(self, graph: DecoderGraph, rows: int, tokens: int, lines: Lines | None) -> CacheMemory:
        """Memory for `rows` sequences of at least `tokens` tokens that holds `lines`; `give_back` ends it."""
        capacity = _LEAST
        while capacity < tokens:
            capacity *= 2
        capacity = min(capacity, graph.context_length)
        with self.turn:
            memory = self._waiting(rows, capacity)
            if memory is None:
                return CacheMemory(graph, rows, capacity, lines)
            memory.fill(lines)
            return memory

    def _waiting(self, rows: int, capacity: int) -> CacheMemory | None:
        for _ in range(len(self._free)):
            memory = self._free.popleft()
            if (memory.rows, memory.capacity) == (rows, capacity):
                return memory
            self._free.append(memory)
        return None

    def give_back(self, memory: CacheMemory) -> None:
        """Nobody uses `memory` any more. Takes no lock: a finalizer may call this in the midst of a run."""
        self._free.append(memory)
        if len(self._free) > _KEPT:
            self._steps.pop(self._free.popleft(), None)

    def run(
        self,
        graph: DecoderGraph,
        memory: CacheMemory,
        tokens: Int64s,
        lengths: Int64s,
        plain: Callable[[], Floats],
    ) -> Floats:
        """Logits float32 [rows, n, vocabulary] of tokens [rows, n] behind `lengths` [rows] tokens.

        `plain` computes the same without a recording.
        """
        if self._works is False:
            return plain()
        expected = plain().copy() if self._works is None else None
        try:
            with self.turn:
                steps = self._steps.setdefault(memory, {})
                step = steps.get(tokens.shape[1]) or _CapturedStep(graph, memory, tokens.shape[1])
                steps[tokens.shape[1]] = step
                found = step.run(tokens, lengths)
        except Exception as error:
            return self._give_up(f"CUDA did not record it ({error})", plain)
        if expected is not None and not _agree(found, expected):
            return self._give_up("its logits are not those of a plain step", plain)
        self._works = True
        return found

    def _give_up(self, why: str, plain: Callable[[], Floats]) -> Floats:
        self._works = False
        warnings.warn(
            f"Decoding goes on without CUDA graphs: {why}. Load the model with cuda_graph=False.",
            RuntimeWarning,
            stacklevel=2,
        )
        return plain()


class _CapturedStep:
    """A step of `count` tokens per row over one memory. One thread at a time."""

    def __init__(self, graph: DecoderGraph, memory: CacheMemory, count: int) -> None:
        self._graph = graph
        self._memory = memory  # its addresses are in the recording
        self._options = new_run_options(graph_id=next(_numbers))
        self._io = graph.session.io_binding()
        memory.bind(self._io, 0, memory.rows)
        sizes = {"input_ids": count, "position_ids": count, "attention_mask": memory.capacity}
        self._inputs: Mapping[str, onnxruntime.OrtValue] = {
            name: self._fixed(np.zeros((memory.rows, size), np.int64))
            for name, size in sizes.items()
            if name in graph.inputs
        }
        for name, value in self._inputs.items():
            self._io.bind_ortvalue_input(name, value)
        shape = (memory.rows, count, graph.vocabulary)
        self._logits = self._fixed(np.zeros(shape, graph.logits.storage))
        address, kind = self._logits.data_ptr(), graph.logits.bound
        self._io.bind_output("logits", graph.device, 0, kind, shape, address)

    def run(self, tokens: Int64s, lengths: Int64s) -> Floats:
        """As `CapturedSteps.run`."""
        behind = lengths[:, None] + np.arange(tokens.shape[1])
        mask = np.arange(self._memory.capacity) <= behind[:, -1:]
        fed = {"input_ids": tokens, "position_ids": behind, "attention_mask": mask}
        for name, value in self._inputs.items():
            value.update_inplace(np.ascontiguousarray(fed[name], np.int64))
        self._graph.session.run_with_iobinding(self._io, self._options)
        return self._graph.logits.to_float32(self._logits.numpy())

    def _fixed(self, array: np.ndarray) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self._graph.device, 0)


def _agree(found: Floats, expected: Floats) -> bool:
    """Kernels may add in another order for another length of the mask; float16 shows that."""
    return float(np.abs(found - expected).max()) <= _AGREE * float(np.abs(expected).max())
