"""A decoder whose every residual branch has a switch, and how often it guesses right without some of them."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxforge.compiler.proof_session import threads
from onnxforge.compiler.save import save_model
from onnxforge.passes.skip_layers import SKIP, SkipLayers
from onnxforge.runtimes.decoder_graph import LOGITS_TO_KEEP, DecoderGraph, read_graph
from onnxforge.runtimes.session import open_session


class SkippingSession:
    """A text that the whole model has read, and its choice at every place.

    A guess at one place costs a run of one token. It is made as a draft is: over keys and values that the
    whole model wrote, at one place more. What that run writes there is put back.
    """

    def __init__(self, graph: DecoderGraph, switches: int, ids: np.ndarray) -> None:
        """Read ``ids``, int64 [S]."""
        self._graph = graph
        self._ids = ids
        self._all_on = np.zeros(switches, np.int64)
        self._cache = {
            tensor.past: np.zeros((1, tensor.heads, len(ids), tensor.head_dim), tensor.dtype)
            for tensor in graph.cache
        }
        self._binding = graph.session.io_binding()
        for tensor in graph.cache:
            array = self._cache[tensor.past]
            for bind, name in (
                (self._binding.bind_input, tensor.past),
                (self._binding.bind_output, tensor.present),
            ):
                bind(name, "cpu", 0, tensor.element.bound, array.shape, array.ctypes.data)
        self.choices: np.ndarray = self._run(0, ids, self._all_on)
        """int64 [S]: the whole model's likeliest token behind each place."""

    def agreement(self, skipped: Sequence[int], places: Sequence[int]) -> float:
        """The share of ``places`` where the model without the branches ``skipped`` chooses as the whole
        one."""
        switches = self._all_on.copy()
        switches[list(skipped)] = 1
        right = 0
        for place in places:
            lines = {name: array[:, :, place].copy() for name, array in self._cache.items()}
            right += int(self._run(place, self._ids[place : place + 1], switches)[0] == self.choices[place])
            for name, array in self._cache.items():
                array[:, :, place] = lines[name]
        return right / max(len(places), 1)

    def _run(self, before: int, ids: np.ndarray, switches: np.ndarray) -> np.ndarray:
        """int64 [n]: the likeliest token behind each of ``ids`` [n]."""
        total = before + len(ids)
        feeds = {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(before, total)[None],
        }
        for name, array in feeds.items():
            if name in self._graph.inputs:
                self._binding.bind_cpu_input(name, array)
        optional = {SKIP: switches} | ({LOGITS_TO_KEEP: np.array(0)} if self._graph.keeps_logits else {})
        for name, array in optional.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        self._binding.bind_output("logits", "cpu")
        self._graph.session.run_with_iobinding(self._binding)
        logits = self._binding.get_outputs()[-1].numpy()
        chosen: np.ndarray = logits[0].argmax(axis=-1)
        return chosen


@contextmanager
def skipping_session(model: ir.Model, vocabulary: int | None) -> Iterator[tuple[DecoderGraph, int]]:
    """``model`` with a switch for every branch that can have one, on the CPU, and their number.

    Its files last as long as the block.
    """
    derived = SkipLayers(branches="all", separately=True)(model).model
    switches = next(value for value in derived.graph.inputs if value.name == SKIP)
    assert switches.const_value is not None
    with tempfile.TemporaryDirectory(prefix="onnxforge-skipping-") as temp:
        save_model(model, Path(temp), derived={SkipLayers.file: derived})
        session = open_session(Path(temp) / SkipLayers.file, "CPUExecutionProvider", {}, threads())
        context = int(model.metadata_props["onnxforge.context_length"])
        yield read_graph(session, "cpu", context, True, vocabulary), switches.const_value.size
