"""Remove attention heads: query heads, or key-value heads with all that read them and their cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.allocation import cheapest, comparable
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.option_checks import check_choice, check_share
from onnxforge.passes.prune_cut import Cut, nothing_to_prune, planned
from onnxforge.passes.prune_groups import PruneGroup, Unit, prune_groups
from onnxforge.passes.removed_units import remember_units
from onnxforge.passes.surgeon import Removal
from onnxforge.passes.unit_scores import SURGEON, Unmeasured, removal, score_names
from onnxforge.passes.unpruned import remember_unpruned

WHAT = "pruned heads"
AUTO, QUERY, GROUP = "auto", "query", "group"
_UNITS: Final = {QUERY: Unit.QUERY_HEAD, GROUP: Unit.KV_GROUP}


@dataclass(frozen=True)
class PruneHeads(GraphPass):
    """Remove the attention heads that the model can best do without.

    ::

        query   qkv [.., (9 + 2 * 3) * D] -> GQA(9, 3) -> [.., 9 * D] @ o    (one of each group of three)
                qkv [.., (6 + 2 * 3) * D] -> GQA(6, 3) -> [.., 6 * D] @ o'

        group   qkv [.., (9 + 2 * 3) * D] -> GQA(9, 3) -> [.., 9 * D] @ o    past, present [B, 3, P, D]
                qkv [.., (6 + 2 * 2) * D] -> GQA(6, 2) -> [.., 6 * D] @ o'   past, present [B, 2, P, D]

    Grouped attention wants as many query heads for each key-value head, so of each group as many go. A query
    head leaves the cache as it is, and layers may lose different numbers. With a key-value head its part of
    the cache goes, so every layer of a decoder loses as many: runtimes read one number from the
    configuration. Where each query head has a key-value head of its own, only ``group`` is possible.

    Scores and ``refit`` are those of ``prune-mlp``. Source: Michel et al. 2019 (1905.10650) for the unit; the
    cost of a head is that of :mod:`onnxforge.passes.surgeon`.
    """

    summary: ClassVar[str] = "remove attention heads, and refit the output projections by least squares"

    share: float = 0.1
    """Of all query heads (``unit=group``: of the key-value heads of each layer), removed."""
    unit: str = AUTO
    """``query``, ``group``, or ``auto``: query heads where several read one key-value head, else groups."""
    score: str = SURGEON
    refit: bool = True

    def requires(self, model: ir.Model) -> None:
        """Refuse options that mean nothing.

        Raises:
            PassRefused: what is wrong, and what to write instead.
        """
        check_share(self.text(), "share", self.share)
        check_choice(self.text(), "unit", self.unit, (AUTO, *_UNITS))
        check_choice(self.text(), "score", self.score, score_names())

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Choose over all layers, then cut.

        Raises:
            PassRefused: no attention was understood (with the nodes that stopped the search), too few heads
                for the share, or the score asks for what was not measured.
        """
        found = prune_groups(model.graph)
        units = (Unit.QUERY_HEAD, Unit.KV_GROUP) if self.unit == AUTO else (_UNITS[self.unit],)
        groups = found.first_of(*units)
        if not groups:
            others = found.of(*_UNITS.values())
            hint = f" Its {others[0].unit}s can go: write unit={AUTO}." if others else ""
            raise PassRefused(nothing_to_prune(self.text(), "attention head", found) + hint)
        for refusal in found.refusals:
            notes.near_miss(WHAT, refusal.value.name, refusal.reason)
        try:
            cuts = self._cuts(groups)
        except Unmeasured as reason:
            raise PassRefused(f"{self.text()}: {reason}") from reason
        remember_unpruned(model)
        for cut in cuts:
            cut.make(model.graph)
            notes.match(WHAT, f"{cut.group.name}: {cut.group.units} -> {len(cut.kept)} {cut.group.unit}s")
        remember_units(model, groups, {cut.group.name: len(cut.kept) for cut in cuts})
        return ir.passes.PassResult(model, modified=bool(cuts))

    def _cuts(self, groups: Sequence[PruneGroup]) -> list[Cut]:
        counts = self._counts(groups)
        return [
            planned(group, found.order[:count], fit=self.refit)
            for group, (found, count) in zip(groups, counts, strict=True)
            if count
        ]

    def _counts(self, groups: Sequence[PruneGroup]) -> list[tuple[Removal, int]]:
        """For each group its removal, and how many units of it to take."""
        found = [removal(group, self.score, group.units - group.classes) for group in groups]
        if any(group.caches() for group in groups):
            most = min(group.units for group in groups) - 1
            count = round(self.share * (most + 1))
            if not 0 < count <= most:
                raise PassRefused(
                    f"{self.text()}: every layer has {most + 1} key-value heads and is to lose as many; "
                    f"{self.share:g} of them is {count}. Write share={1 / (most + 1):.2f} for one of each"
                    f"{', or unit=query' if self.unit == GROUP else ''}."
                )
            return [(item, count) for item in found]
        curves = [
            comparable(group, item)[group.classes - 1 :: group.classes]
            for group, item in zip(groups, found, strict=True)
        ]
        step = groups[0].classes
        taken = cheapest(curves, round(self.share * sum(group.units for group in groups) / step))
        if not any(taken):
            raise PassRefused(f"{self.text()}: {self.share:g} of all heads is less than one")
        return [(item, steps * step) for item, steps in zip(found, taken, strict=True)]
