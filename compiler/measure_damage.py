"""What each layer's units are worth to the whole model: prune one place at a time, and compare answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.calibration_data import check_samples, trial_batches
from onnxforge.compiler.sensitivity import switch_session
from onnxforge.compiler.switched_graph import products, switched_graph
from onnxforge.passes import notes
from onnxforge.passes.allocation import rounded
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.constants import add_array
from onnxforge.passes.option_checks import check_choice, check_share
from onnxforge.passes.prune_cut import nothing_to_prune, planned
from onnxforge.passes.prune_groups import PruneGroup, Unit, prune_groups
from onnxforge.passes.unit_damage import UnitDamage, leave_damage
from onnxforge.passes.unit_scores import SURGEON, Unmeasured, readers_of, removal, score_names

WHAT = "damage of units"
_UNITS: Final[Mapping[str, tuple[Unit, ...]]] = {
    "mlp": (Unit.CHANNEL,),
    "heads": (Unit.QUERY_HEAD, Unit.KV_GROUP),
    "kv-heads": (Unit.KV_GROUP,),
}
"""The first of these that a graph has, as ``prune-heads`` takes them."""


@dataclass(frozen=True)
class MeasureDamage(GraphPass):
    """Measure how far the model moves when one layer alone loses units; nothing in the graph changes.

    The error that a layer's output has once units are gone (and refitted) does not tell what the model makes
    of it: of two layers with equal errors one may be ten times as sensitive. So for every layer the whole
    model is run with that layer cut, and its answers are compared with the uncut model's. One session holds
    both forms of every layer (:mod:`onnxforge.compiler.switched_graph`). Passes that spread a share over the
    layers scale the cost of each by what was measured here. Needs ``correlate-inputs`` before it. Where some
    layer cannot be switched (OPT reshapes all texts into one list of tokens) none is measured:
    the passes then compare costs by what each layer does, and two scales would mix.
    """

    summary: ClassVar[str] = "what the model loses when one layer is pruned, layer by layer"

    unit: str = "mlp"
    """``mlp``, ``heads`` or ``kv-heads``."""
    share: float = 0.2
    """Of the units of a layer, taken out on trial."""
    score: str = SURGEON
    """Which of them, as in ``prune-mlp``."""
    samples: int = 2
    """Windows of a decoder, eights of sentences of an encoder."""
    tokens: int = 128

    def requires(self, model: ir.Model) -> None:
        """Refuse options that mean nothing.

        Raises:
            PassRefused: what is wrong, and what to write instead.
        """
        check_choice(self.text(), "unit", self.unit, _UNITS)
        check_share(self.text(), "share", self.share)
        check_choice(self.text(), "score", self.score, score_names())
        check_samples(self.text(), self.samples, self.tokens)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Leave the damage on the values; see :mod:`onnxforge.passes.unit_damage`.

        Raises:
            PassRefused: no unit of this kind can be removed, or the score asks for what was not measured.
        """
        found = prune_groups(model.graph)
        groups = found.first_of(*_UNITS[self.unit])
        if not groups:
            raise PassRefused(nothing_to_prune(self.text(), self.unit, found))
        nodes = products(model)
        fixed = next((node for group in groups for node in group.readers() if node not in nodes), None)
        if fixed is not None:
            reason = "its result is not [batch, tokens, channels], so no switch fits it; no layer is measured"
            notes.near_miss(WHAT, fixed.name or "", reason)
            return ir.passes.PassResult(model, modified=False)
        counts = [_count(group, self.share) for group in groups]
        try:
            trial = _Trial(self._matrices(groups, counts))
        except Unmeasured as reason:
            raise PassRefused(f"{self.text()}: {reason}") from reason
        both = switched_graph(model, trial)
        owners = [self._owner(groups, nodes[position]) for position in both.positions]
        choices = np.array([[owner is group for owner in owners] for group in groups])
        with switch_session(both.model) as session:
            work = trial_batches(model, self.samples, self.tokens, used_by=self.text())
            damage = session.divergence(choices, work)
        for group, count, moved in zip(groups, counts, damage, strict=True):
            leave_damage(group.value, UnitDamage(count, float(moved)))
            notes.measured(WHAT, group.name, float(moved), f"without {count} of {group.units} {group.unit}s")
        return ir.passes.PassResult(model, modified=False)

    def _matrices(self, groups: Sequence[PruneGroup], counts: Sequence[int]) -> Mapping[str, np.ndarray]:
        """By the name of a MatMul: its matrix without the group's cheapest units, whose rows are zero."""
        made: dict[str, np.ndarray] = {}
        for group, count in zip(groups, counts, strict=True):
            cut = planned(group, removal(group, self.score, count).order, fit=True)
            for reader in readers_of(group):
                labels = group.labels_of(reader.values[0])
                matrix = np.zeros_like(reader.matrix())
                matrix[(labels < 0) | np.isin(labels, cut.kept)] = cut.fitted[reader.weight]
                users = [use.node for use in reader.weight.uses() if use.node in group.readers()]
                made |= {node.name or "": matrix for node in users}
        return made

    def _owner(self, groups: Sequence[PruneGroup], node: ir.Node) -> PruneGroup:
        return next(group for group in groups if node in group.readers())


@dataclass(frozen=True)
class _Trial(GraphPass):
    """Give the products that are named other matrices."""

    matrices: Mapping[str, np.ndarray] = field(hash=False)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in tuple(model.graph):
            matrix = self.matrices.get(node.name or "")
            if matrix is not None:
                node.replace_input_with(1, add_array(model.graph, f"{node.name}.trial", matrix))
        return ir.passes.PassResult(model, modified=True)


def _count(group: PruneGroup, share: float) -> int:
    """How many units go: of every class as many, at least one, and never all."""
    each = group.units // group.classes
    return group.classes * min(max(1, rounded(each, share, 1)), each - 1)
