"""Mixed precision by measured sensitivity: the fewest MatMuls stay out of static W8A8."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.calibration_data import CalibrationBatch, check_samples, trial_batches
from onnxforge.compiler.sensitivity import SwitchSession, switch_session
from onnxforge.compiler.switched_graph import products, switched_graph
from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.insert_qdq import InsertQdq
from onnxforge.passes.kept_float import STATIC_W8A8, keep_float, release


@dataclass(frozen=True)
class MixPrecision(GraphPass):
    """Mark the MatMuls that ``insert-qdq`` is to leave alone, so that the whole model stays within a limit.

    First every MatMul is made static W8A8 alone, and what that does to the model's answers on calibration
    text is its sensitivity. Then the most sensitive ones are kept back, as few as bring the model with all
    others static below the limit; that is measured too, by a search, not summed up. A pass that follows
    ``insert-qdq`` takes up those that were kept back: ``insert-qdq{per_token=true}``, whose tokens have
    scales of their own, or ``quantize-weights``, whose blocks have. Run after ``calibrate``.

    The sensitivities are in the report. The order by one-at-a-time divergence is that of mixed-precision
    search since Wang et al. 2018, HAQ (1811.08886) and Dong et al. 2019, HAWQ (1905.03696); both estimate
    what is measured here.
    """

    summary: ClassVar[str] = "keep the most sensitive MatMuls out of static W8A8, as few as a limit allows"

    max_kl: float = 0.0075
    """For models that answer logits: KL(float || static), nats per token."""
    max_cosine_distance: float = 0.005
    """For models that answer hidden states: 1 minus the mean cosine of pooled sentences."""
    samples: int = 1
    """Windows (encoders: eights of sentences) for one MatMul alone."""
    tokens: int = 64
    check_samples: int = 2
    """The same for the model with all chosen MatMuls."""
    check_tokens: int = 256
    skip: str = ""
    """As in ``insert-qdq``: a regular expression; what it finds is not considered."""

    def requires(self, model: ir.Model) -> None:
        """Refuse limits and sizes that mean nothing, and a graph that was never calibrated.

        Raises:
            PassRefused: what is wrong, and what to write instead.
        """
        if not (self.max_kl > 0 and self.max_cosine_distance > 0):
            raise PassRefused(f"{self.text()}: the limits must be above 0")
        check_samples(self.text(), self.samples, self.tokens)
        check_samples(self.text(), self.check_samples, self.check_tokens)
        self._trial().requires(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Mark the nodes; see :mod:`onnxforge.passes.kept_float`."""
        nodes = products(model)
        for node in nodes:
            release(node)
        both = switched_graph(model, self._trial())
        if not both.positions:
            return ir.passes.PassResult(model, modified=False)
        sites = [nodes[position] for position in both.positions]
        with switch_session(both.model) as session:
            limit = self.max_kl if session.answer == "logits" else self.max_cosine_distance
            work = trial_batches(model, self.samples, self.tokens, used_by=self.text())
            alone = session.divergence(np.eye(len(sites), dtype=bool), work)
            order = [int(site) for site in np.argsort(-alone, kind="stable")]
            check_on = trial_batches(model, self.check_samples, self.check_tokens, used_by=self.text())
            rest = np.cumsum(alone[order][::-1])[
                ::-1
            ]  # as if divergences added up: nearly so, and only a start
            expected = int(np.sum(rest > limit))
            count, reached = _fewest(session, order, check_on, limit, expected)
        for rank, site in enumerate(order):
            name = sites[site].name
            notes.measured(STATIC_W8A8, name, float(alone[site]), "kept back" if rank < count else "static")
            if rank < count:
                keep_float(
                    sites[site],
                    f"static W8A8 here alone moves the answers by {alone[site]:.2g}; without it and "
                    f"{count - 1} others the model stays at {reached:.2g}, and {limit:g} is the limit",
                    static_only=True,
                )
        return ir.passes.PassResult(model, modified=False)

    def _trial(self) -> InsertQdq:
        return InsertQdq(min_sqnr_db=0, skip=self.skip)


def _fewest(
    session: SwitchSession,
    order: Sequence[int],
    work: Sequence[CalibrationBatch],
    limit: float,
    expected: int,
) -> tuple[int, float]:
    """How many of ``order``, from its start, to keep float; and the divergence of all others static.

    The search starts at ``expected`` and doubles its steps until it has the answer between two measures.
    """

    def kept(count: int) -> float:
        choice = np.ones((1, len(order)), dtype=bool)
        choice[0, list(order[:count])] = False
        return float(session.divergence(choice, work)[0])

    low, high, reached = -1, len(order), 0.0  # with all kept float nothing moves
    probe, step = expected, 2
    while high - low > 1:
        probe = min(max(probe, low + 1), high - 1)
        found = kept(probe)
        if found <= limit:
            high, reached = probe, found
        else:
            low = probe
        bracketed = low >= 0 and high < len(order)
        probe = (low + high) // 2 if bracketed else probe + (step if found > limit else -step)
        step *= 2
    return high, reached
