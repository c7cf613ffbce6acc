"""Prune until a model is as small or as fast as asked, where it hurts least."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, Final

import onnx_ir as ir

from onnxforge.compiler.calibration_data import CalibrationBatch, check_samples, trial_batches
from onnxforge.compiler.correlate_inputs import CorrelateInputs
from onnxforge.compiler.pruning_trial import Contestant, Measures, compared, contestant
from onnxforge.compiler.rank_layers import RankLayers
from onnxforge.compiler.step_progress import say
from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.option_checks import check_choice, check_share
from onnxforge.passes.prune_heads import PruneHeads
from onnxforge.passes.prune_layers import PruneLayers
from onnxforge.passes.prune_mlp import PruneMlp

ON_TRIAL: Final = "pruning on trial"
"""What the measures speak of: one for each unit and share alone, then one for each combination."""
METRICS: Final = ("latency", "size", "flops")
_SHARES: Final[Mapping[str, Sequence[float]]] = {
    "layers": (0.034, 0.067, 0.1, 0.14, 0.2, 0.27, 0.34, 0.5),
    "heads": (0.1, 0.2, 0.34),
    "mlp": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
}
"""What is tried of each unit, in the order in which they are removed."""
_CORRECTIONS: Final = 5
Plan = Mapping[str, float]
"""Shares by unit; a unit that keeps all has none."""


@dataclass(frozen=True)
class PruneToBudget(GraphPass):
    """Remove layers, heads and FFN channels until ``metric`` is ``ratio`` of what it was, at least damage.

    Each unit is tried alone at several shares: the pruned and refitted model runs beside the whole one on
    calibration text, which gives its damage, and in turns with it, which gives its latency. Of all
    combinations that should meet the ratio (damages add up, savings too, apart from what removed layers had
    to save) the one of least damage is taken, measured as a whole, and corrected until it does meet it. Then
    it is done in earnest: layers first, inputs measured again before heads and before channels. Every trial
    is in the report.

    Latency is that of float32 on the CPU of this machine, one token after an empty cache (encoders: 8 x 64
    tokens): what a quantized target gains of it is in its proof.
    """

    summary: ClassVar[str] = "prune layers, heads and channels down to a latency, size or number of products"

    metric: str = "latency"
    """``latency``, ``size`` (bytes of weights, embedding included) or ``flops`` (products for a token)."""
    ratio: float = 0.7
    """Of the model's as this step finds it: put it in front of other pruning."""
    units: str = "layers+heads+mlp"
    """Which may be removed."""
    refit: bool = True
    samples: int = 2
    """Windows of a decoder, eights of sentences of an encoder, on which damage is measured."""
    tokens: int = 256

    def requires(self, model: ir.Model) -> None:
        """Refuse options that mean nothing.

        Raises:
            PassRefused: what is wrong, and what to write instead.
        """
        check_choice(self.text(), "metric", self.metric, METRICS)
        check_share(self.text(), "ratio", self.ratio)
        unknown = [unit for unit in self.units.split("+") if unit not in _SHARES]
        if unknown:
            raise PassRefused(
                f"{self.text()}: {unknown[0]!r} is no unit; use {', '.join(_SHARES)}, joined by `+`"
            )
        check_samples(self.text(), self.samples, self.tokens)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Search on copies, then prune ``model``.

        Raises:
            PassRefused: no combination that was tried meets the ratio (with the nearest), or none of the
                units can be removed.
        """
        _run(CorrelateInputs(), model)
        with contestant(model) as whole:
            alone = self._alone(model, whole)
            plan = self._plan(model, whole, alone)
        for step in self._steps(plan):
            _run(step, model)
        return ir.passes.PassResult(model, modified=True)

    def _alone(self, model: ir.Model, whole: Contestant) -> Mapping[str, Mapping[float, Measures]]:
        """By unit and share, what the model without only that is."""
        work = trial_batches(model, self.samples, self.tokens, used_by=self.text())
        found: dict[str, dict[float, Measures]] = {}
        trials = [(unit, share) for unit in self.units.split("+") for share in _SHARES[unit]]
        for number, (unit, share) in enumerate(trials):
            say(f"trial {number + 1} of {len(trials)}, {unit}={share:g}")
            try:
                measures = self._tried(model, {unit: share}, whole, work)
            except PassRefused as reason:
                notes.near_miss(ON_TRIAL, f"{unit}={share:g}", str(reason))
                continue
            found.setdefault(unit, {})[share] = measures
            notes.measured(ON_TRIAL, f"{unit}={share:g}", measures.damage, _said(measures))
        if not found:
            raise PassRefused(f"{self.text()}: nothing that was tried can be removed from this graph")
        return found

    def _plan(
        self, model: ir.Model, whole: Contestant, alone: Mapping[str, Mapping[float, Measures]]
    ) -> Plan:
        """The combination of least damage that meets the ratio, as measured."""
        wanted, nearest = self.ratio, math.inf
        for _ in range(_CORRECTIONS):
            plan = _cheapest(alone, self.metric, wanted)
            if plan is None:
                break
            say(f"together, {_spelled(plan)}")
            found = self._tried(model, plan, whole, ())
            notes.measured(ON_TRIAL, _spelled(plan), found.of(self.metric), f"of the {self.metric}, together")
            nearest = min(nearest, found.of(self.metric))
            if found.of(self.metric) <= self.ratio:
                return plan
            wanted *= self.ratio / found.of(self.metric)
        reached = f"; the nearest came to {nearest:.2f}" if nearest < math.inf else ""
        raise PassRefused(
            f"{self.text()}: no combination of what was tried comes to {self.ratio:g} of the {self.metric}"
            f"{reached}. Ask for less, or allow more of {', '.join(_SHARES)}."
        )

    def _tried(
        self, model: ir.Model, plan: Plan, whole: Contestant, work: Sequence[CalibrationBatch]
    ) -> Measures:
        """A copy pruned by ``plan`` beside the whole model; without ``work`` its damage is not asked for."""
        copy = _copy(model)
        with notes.listen():  # what steps say of a copy is no part of what was done
            for step in self._quick(plan, fit=bool(work)):
                _run(step, copy)
        with ExitStack() as stack:
            return compared(whole, stack.enter_context(contestant(copy)), work)

    def _quick(self, plan: Plan, *, fit: bool) -> Iterator[GraphPass]:
        """Steps by cheap scores; what they remove has the shape of what is removed in earnest."""
        score = "wanda" if fit else "magnitude"
        if "layers" in plan:
            yield RankLayers(count=plan["layers"], by="damage" if fit else "magnitude", samples=2)
            yield PruneLayers(count=plan["layers"])
        if "heads" in plan:
            yield PruneHeads(share=plan["heads"], score=score, refit=fit and self.refit)
        if "mlp" in plan:
            yield PruneMlp(share=plan["mlp"], score=score, refit=fit and self.refit)

    def _steps(self, plan: Plan) -> Iterator[GraphPass]:
        if "layers" in plan:
            yield RankLayers(count=plan["layers"])
            yield PruneLayers(count=plan["layers"])
        if "heads" in plan:
            yield CorrelateInputs()
            yield PruneHeads(share=plan["heads"], score="wanda", refit=self.refit)
        if "mlp" in plan:
            yield CorrelateInputs()
            yield PruneMlp(share=plan["mlp"], refit=self.refit)


def _run(step: GraphPass, model: ir.Model) -> None:
    """As calling it, but a refusal comes as it is and not wrapped."""
    step.requires(model)
    step.call(model)


def _cheapest(alone: Mapping[str, Mapping[float, Measures]], metric: str, wanted: float) -> Plan | None:
    """Of all combinations that should come to ``wanted``, the one whose damages add up to least."""
    choices = [[(unit, 0.0), *((unit, share) for share in shares)] for unit, shares in alone.items()]
    best, least = None, math.inf
    for combination in itertools.product(*choices):
        plan = {unit: share for unit, share in combination if share}
        damage = sum(alone[unit][share].damage for unit, share in plan.items())
        if plan and damage < least and _expected(alone, metric, plan) <= wanted:
            best, least = plan, damage
    return best


def _expected(alone: Mapping[str, Mapping[float, Measures]], metric: str, plan: Plan) -> float:
    """What should be left: removed layers no longer have heads and channels to save."""
    stay = 1 - plan.get("layers", 0.0)
    saved = {unit: 1 - alone[unit][share].of(metric) for unit, share in plan.items()}
    return 1 - sum(part * (1 if unit == "layers" else stay) for unit, part in saved.items())


def _copy(model: ir.Model) -> ir.Model:
    """A clone that finds the same calibration data; what was measured of its values comes along."""
    copy = model.clone()
    copy.meta.update(model.meta)
    return copy


def _spelled(plan: Plan) -> str:
    return ",".join(f"{unit}={share:g}" for unit, share in plan.items())


def _said(found: Measures) -> str:
    return f"{found.latency:.2f} of the latency, {found.size:.2f} of the size, {found.flops:.2f} of the flops"
