"""A model on trial: how far its answers are from another's, how large it is, and how long a step takes."""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxforge.compiler.calibration_data import CalibrationBatch
from onnxforge.compiler.graph_facts import answer_of
from onnxforge.compiler.graph_feeds import whole_sequence_feeds
from onnxforge.compiler.observe import graph_stats
from onnxforge.compiler.proof_session import threads
from onnxforge.compiler.save import GRAPH, save_model
from onnxforge.compiler.sensitivity import distance
from onnxforge.passes.constants import constant, extents
from onnxforge.passes.matching import is_op
from onnxforge.passes.weight_inputs import weight_of

_MOST_ROUNDS: Final = 21
_FEWEST_ROUNDS: Final = 3
_PATIENCE: Final = 10.0
"""Seconds after which no further round of timing starts, once there are the fewest."""
_TOKENS: Final = 64
"""Of each of eight sentences that an encoder reads while it is timed; a decoder makes one step."""


@dataclass(frozen=True)
class Measures:
    """What a pruned model is, in parts of the unpruned one; ``damage`` is 0 for that."""

    damage: float
    """KL of the next token in nats; for encoders 1 - the mean cosine of sentences."""
    size: float
    """Bytes of weights."""
    flops: float
    """Multiplications by weights for one token."""
    latency: float
    """Time of a decoder's step on one token, or of an encoder's run on 8 x 64 tokens, on the CPU, in float32:
    the median over rounds in which both models have their turn."""

    def of(self, metric: str) -> float:
        """``size``, ``flops`` or ``latency``."""
        return {"size": self.size, "flops": self.flops, "latency": self.latency}[metric]


class Contestant:
    """A float model in a session of its own."""

    def __init__(self, session: ort.InferenceSession, model: ir.Model, answer: str) -> None:
        self._session, self.answer = session, answer
        self.bytes, self.flops = graph_stats(model).weight_bytes, products_per_token(model)
        decodes = any(spec.name.startswith("past_key_values.") for spec in session.get_inputs())
        context = int(model.metadata_props.get("onnxforge.context_length", _TOKENS))
        ids = np.full((1, 1) if decodes else (8, min(_TOKENS, context)), 5, np.int64)
        self._step = whole_sequence_feeds(session.get_inputs(), ids, np.ones_like(ids), "trial")

    def answers(self, batch: CalibrationBatch) -> np.ndarray:
        """float32 [B, ...]: logits or hidden states."""
        feeds = whole_sequence_feeds(self._session.get_inputs(), batch.ids, batch.mask, "trial")
        found: np.ndarray = self._session.run([self.answer], dict(feeds))[0]
        return found

    def seconds(self) -> float:
        """Of one step."""
        start = time.perf_counter()
        self._session.run([self.answer], dict(self._step))
        return time.perf_counter() - start


@contextmanager
def contestant(model: ir.Model) -> Iterator[Contestant]:
    """``model``, which stays as it is, on the CPU; its files last as long as the block.

    Raises:
        PassRefused: it answers neither logits nor hidden states.
    """
    answer = answer_of(model).name or ""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads()
    with tempfile.TemporaryDirectory(prefix="onnxforge-trial-") as temp:
        save_model(model, Path(temp))
        session = ort.InferenceSession(str(Path(temp, GRAPH)), options, providers=["CPUExecutionProvider"])
        yield Contestant(session, model, answer)


def compared(whole: Contestant, pruned: Contestant, work: Sequence[CalibrationBatch]) -> Measures:
    """``pruned`` in parts of ``whole``, its answers compared over ``work``; with none there is no damage."""
    found = [
        (
            float(batch.mask.sum()),
            distance(whole.answer, whole.answers(batch), pruned.answers(batch), batch.mask),
        )
        for batch in work
    ]
    total = sum(count for count, _ in found)
    return Measures(
        damage=sum(count * apart for count, apart in found) / total if total else 0.0,
        size=pruned.bytes / whole.bytes,
        flops=pruned.flops / whole.flops,
        latency=statistics.median(ours / theirs for theirs, ours in _rounds(whole, pruned)),
    )


def _rounds(whole: Contestant, pruned: Contestant) -> Iterator[tuple[float, float]]:
    """Seconds of a step of both, one right after the other: what disturbs the machine for a while is in both,
    and the ratio of the two is steadier than that of their medians over all rounds (half the spread)."""
    deadline = time.perf_counter() + _PATIENCE
    for done in range(_MOST_ROUNDS):
        if done >= _FEWEST_ROUNDS and time.perf_counter() > deadline:
            return
        yield whole.seconds(), pruned.seconds()


def products_per_token(model: ir.Model) -> int:
    """Multiplications by weights that a token takes: the elements of every matrix, as often as it is used."""
    total = 0
    for node in model.graph:
        weight = weight_of(node) if is_op(node, "MatMul") else None
        if weight is not None and constant(weight.value) is not None:
            total += int(np.prod(extents(weight.tensor)))
    return total
