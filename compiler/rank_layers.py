"""In which order a model can lose its layers: measured on calibration text, for ``prune-layers``."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.activations import watched_rows
from onnxforge.compiler.calibration_data import CalibrationBatch, check_samples, trial_batches
from onnxforge.compiler.layer_damage import greedy_order
from onnxforge.compiler.layer_switches import layer_session
from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.constants import constant
from onnxforge.passes.layer_ranks import LAYER_RANK, leave_ranks
from onnxforge.passes.layers import LayersNotFound, LayerUnit, Span, find_layers, spans_of
from onnxforge.passes.prune_layers import how_many


@dataclass(frozen=True)
class RankLayers(GraphPass):
    """Leave on the layers of a model the order in which ``prune-layers`` is to remove them.

    ``by=damage`` leaves layers out, one after the other, and measures how far the model then is from the
    whole one: KL of the next token, or for encoders 1 - cosine of sentences; greedily, see
    :func:`onnxforge.compiler.layer_damage.greedy_order`. ``by=influence`` is the block influence of ShortGPT
    (Men et al. 2024, 2403.03853), 1 - the mean cosine between what enters a layer and what leaves it: one run
    of the text for all layers. ``by=magnitude`` (root mean square of a layer's weights) and ``by=random`` are
    there to be compared with.

    Nothing in the graph changes. Every measure is in the report.
    """

    summary: ClassVar[str] = "the order in which layers can go, by what the model is without them"

    count: int | float = 0.5
    """How many are to be ranked, or below 1 which share: as many as ``prune-layers`` will remove."""
    unit: str = "layer"
    """``layer``, ``attention`` or ``mlp``."""
    by: str = "damage"
    """``damage``, ``influence``, ``magnitude`` or ``random``."""
    samples: int = 8
    """Windows of a decoder, eights of sentences of an encoder."""
    tokens: int = 128
    seed: int = 0
    """For ``by=random``."""

    def requires(self, model: ir.Model) -> None:
        """Refuse options that mean nothing, and a graph whose layers cannot be told apart.

        Raises:
            PassRefused: what is wrong.
        """
        if self.unit not in tuple(LayerUnit) or self.by not in _SCORES:
            raise PassRefused(
                f"{self.text()}: unit is one of {', '.join(LayerUnit)}, by one of {', '.join(_SCORES)}."
            )
        check_samples(self.text(), self.samples, self.tokens)
        most = len(self._spans(model)) - 1
        if not 0 < how_many(self.count, most + 1) <= most:
            raise PassRefused(f"{self.text()}: of {most + 1} {self.unit}s 1 to {most} can be ranked to go.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Leave the ranks; see :mod:`onnxforge.passes.layer_ranks`."""
        spans = self._spans(model)
        wanted = how_many(self.count, len(spans))
        order = _SCORES[self.by](self, model, spans, wanted)
        leave_ranks(spans, LayerUnit(self.unit), [number for number, _ in order[:wanted]])
        for rank, (number, value) in enumerate(order):
            outcome = "to go" if rank < wanted else "to stay"
            notes.measured(LAYER_RANK, f"{self.unit} {number}", value, outcome)
        return ir.passes.PassResult(model, modified=False)

    def work(self, model: ir.Model) -> list[CalibrationBatch]:
        """The text to run."""
        return trial_batches(model, self.samples, self.tokens, used_by=self.text())

    def _spans(self, model: ir.Model) -> tuple[Span, ...]:
        try:
            return spans_of(find_layers(model.graph), LayerUnit(self.unit))
        except LayersNotFound as problem:
            raise PassRefused(f"{self.text()}: {problem}.") from problem


Order = list[tuple[int, float]]
"""Numbers of layers, first to go first, and what was measured of each."""


def _by_damage(step: RankLayers, model: ir.Model, spans: Sequence[Span], count: int) -> Order:
    work = step.work(model)
    with layer_session(model, LayerUnit(step.unit)) as session:

        def damage(gone: Sequence[int]) -> float:
            choice = np.zeros((1, len(spans)), dtype=bool)
            choice[0, list(gone)] = True
            return float(session.divergence(choice, work)[0])

        return greedy_order(len(spans), count, damage)


def _by_influence(step: RankLayers, model: ir.Model, spans: Sequence[Span], _: int) -> Order:
    values = list(dict.fromkeys(value for span in spans for value in (span.start, span.end)))
    ends = [(values.index(span.start), values.index(span.end)) for span in spans]
    total, tokens = np.zeros(len(spans)), 0
    for rows in watched_rows(model, values, step.work(model)):
        total += [_cosines(rows[start], rows[end]).sum() for start, end in ends]
        tokens += len(rows[0])
    return _ascending(1 - total / max(tokens, 1))


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """float64 [T], of rows [T, K] of both."""
    lengths = np.linalg.norm(one, axis=1).astype(np.float64) * np.linalg.norm(other, axis=1)
    found: np.ndarray = np.einsum("tk,tk->t", one, other, dtype=np.float64) / np.maximum(lengths, 1e-30)
    return found


def _by_magnitude(_: RankLayers, __: ir.Model, spans: Sequence[Span], ___: int) -> Order:
    return _ascending(np.array([_root_mean_square(span) for span in spans]))


def _root_mean_square(span: Span) -> float:
    """Of the weights that the nodes of ``span`` read, one tensor at a time."""
    total, count = 0.0, 0
    for value in dict.fromkeys(value for node in span.nodes for value in node.inputs):
        tensor = constant(value)
        if tensor is not None and tensor.dtype.is_floating_point():
            array = tensor.numpy().ravel()
            total, count = total + float(np.dot(array, array)), count + array.size
    return math.sqrt(total / max(count, 1))


def _by_chance(step: RankLayers, _: ir.Model, spans: Sequence[Span], __: int) -> Order:
    return [(int(number), 0.0) for number in np.random.default_rng(step.seed).permutation(len(spans))]


def _ascending(scores: np.ndarray) -> Order:
    return [(int(number), float(scores[number])) for number in np.argsort(scores, kind="stable")]


_SCORES: Mapping[str, Callable[[RankLayers, ir.Model, Sequence[Span], int], Order]] = {
    "damage": _by_damage,
    "influence": _by_influence,
    "magnitude": _by_magnitude,
    "random": _by_chance,
}
