"""How much a choice of MatMul forms moves a model's answers, measured many choices at a time."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxforge.compiler.calibration_data import CalibrationBatch
from onnxforge.compiler.graph_facts import answer_of
from onnxforge.compiler.graph_feeds import whole_sequence_feeds
from onnxforge.compiler.parity import cosine_of_rows, pooled
from onnxforge.compiler.save import GRAPH, save_model
from onnxforge.compiler.switched_graph import SWITCH

_ROOM = 128 << 20
"""Bytes of answers in memory at a time, at least one choice's."""


class SwitchSession:
    """A switched graph in ONNX Runtime, on the CPU."""

    def __init__(self, session: ort.InferenceSession, answer: str, folder: Path) -> None:
        self._session = session
        self._inputs = [spec for spec in session.get_inputs() if spec.name != SWITCH]
        self._folder = folder
        self._references: dict[bytes, Path] = {}
        self.answer = answer

    def divergence(self, choices: np.ndarray, work: Sequence[CalibrationBatch]) -> np.ndarray:
        """float64 [C]: how far each of ``choices``, bool [C, sites], is from all sites float.

        For logits the mean KL(float || choice) over real tokens, in nats; for hidden states 1 minus the
        mean cosine of the sentences' masked means.
        """
        total, count = np.zeros(len(choices)), 0
        for batch in work:
            reference = self._reference(choices.shape[1], batch)
            held = self._held(reference, batch)
            count += held
            start = 0
            for answers in self.answers(choices, batch):
                for row, found in enumerate(answers):
                    total[start + row] += held * distance(self.answer, reference, found, batch.mask)
                start += len(answers)
        return total / max(count, 1)

    def _reference(self, sites: int, batch: CalibrationBatch) -> np.ndarray:
        """float32 [B, ...]: the answers with all sites float, computed once and then read from a file."""
        key = batch.ids.tobytes() + batch.mask.tobytes()
        if key not in self._references:
            path = self._folder / f"reference{len(self._references)}.npy"
            np.save(path, next(self.answers(np.zeros((1, sites), dtype=bool), batch))[0])
            self._references[key] = path
        found: np.ndarray = np.load(self._references[key], mmap_mode="r")
        return found

    def _held(self, reference: np.ndarray, batch: CalibrationBatch) -> int:
        tokens = self.answer == "logits" and reference.shape[:2] == batch.mask.shape
        return int(batch.mask.sum()) if tokens else len(batch.mask)

    def answers(self, choices: np.ndarray, batch: CalibrationBatch) -> Iterator[np.ndarray]:
        """float32 [c, B, ...] for some of ``choices`` after the other, as many as fit."""
        size, at_once = len(batch.ids), 1
        start = 0
        while start < len(choices):
            some = choices[start : start + at_once]
            feeds = dict(
                whole_sequence_feeds(
                    self._inputs,
                    np.tile(batch.ids, (len(some), 1)),
                    np.tile(batch.mask, (len(some), 1)),
                    "sensitivity",
                )
            )
            feeds[SWITCH] = np.repeat(some, size, axis=0).T[:, :, None, None]
            found = self._session.run([self.answer], feeds)[0]
            yield found.reshape(len(some), size, *found.shape[1:])
            at_once = max(1, _ROOM // (found.nbytes // len(some)))
            start += len(some)


@contextmanager
def switch_session(model: ir.Model) -> Iterator[SwitchSession]:
    """A session for a switched graph; its files last as long as the block.

    Raises:
        PassRefused: the graph answers neither logits nor hidden states.
    """
    answer = answer_of(model)
    model.graph.outputs.clear()
    model.graph.outputs.append(answer)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="onnxforge-sensitivity-") as temp:
        save_model(model, Path(temp))
        session = ort.InferenceSession(str(Path(temp, GRAPH)), options, providers=["CPUExecutionProvider"])
        yield SwitchSession(session, answer.name or "", Path(temp))


def distance(answer: str, reference: np.ndarray, found: np.ndarray, mask: np.ndarray) -> float:
    """How far ``found`` is from ``reference``: of logits [B, S, V] the mean KL over real tokens in nats, of
    hidden states [B, S, D] 1 minus the mean cosine of the sentences' masked means."""
    if answer == "logits":
        real = mask.astype(bool) if reference.shape[:2] == mask.shape else np.ones(len(reference), dtype=bool)
        return _kl(reference[real], found[real])
    return float(1 - cosine_of_rows(pooled(reference, mask), pooled(found, mask)).mean())


def _kl(reference: np.ndarray, found: np.ndarray) -> float:
    """Mean KL(reference || found) over rows of float32 logits [T, V], a few rows at a time."""
    total, rows = 0.0, 32
    for start in range(0, len(reference), rows):
        p, q = (_log_softmax(x[start : start + rows]) for x in (reference, found))
        total += float(np.einsum("tv,tv->", np.exp(p), p - q, dtype=np.float64))
    return total / max(len(reference), 1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits - logits.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    result: np.ndarray = wide
    return result
