"""Remove hidden channels of FFNs, gate included, and refit what is behind them."""

import re
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.allocation import cheapest, comparable, granule, rounded
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.option_checks import check_choice, check_pattern, check_share
from onnxforge.passes.prune_cut import Cut, nothing_to_prune, planned
from onnxforge.passes.prune_groups import PruneGroup, Unit, prune_groups
from onnxforge.passes.removed_units import remember_units
from onnxforge.passes.unit_scores import SURGEON, Unmeasured, removal, score_names
from onnxforge.passes.unpruned import remember_unpruned

WHAT = "pruned channels"


@dataclass(frozen=True)
class PruneMlp(GraphPass):
    """Remove the FFN channels that the model can best do without, and their columns, rows and biases.

    ::

        before  x [.., D] @ gate [D, F], x @ up [D, F]  ->  act(g) * u [.., F]  ->  @ down [F, D]
        after   x [.., D] @ gate [D, f], x @ up [D, f]  ->  act(g) * u [.., f]  ->  @ down' [f, D]

    What belongs to a channel is found from the graph (:mod:`onnxforge.passes.prune_groups`), so gated and
    plain FFNs, packed gates, biases and layers that share weights are all one case. ``score`` chooses:
    ``surgeon`` goes by what the output loses once the rows that stay have made up for it, ``wanda`` by what a
    channel adds, ``first-order`` by the loss, ``magnitude`` by its weights alone; ``random`` is there to be
    beaten. With ``refit`` the rows that stay become those of least squares, by the moments that
    ``correlate-inputs`` left.

    SmolLM2-135M, a fifth of all channels: see docs/decisions/0025.
    """

    summary: ClassVar[str] = "remove FFN channels, and refit the down projections by least squares"

    share: float = 0.2
    """Of the channels of every layer, removed."""
    score: str = SURGEON
    refit: bool = True
    multiple: int = 64
    """What is left is a multiple of this, which blocks and kernels ask for; of less in layers of fewer than
    16 of them."""
    uniform: bool = True
    """The same share of every layer; otherwise each step goes where it costs least of a layer's output."""
    skip: str = ""
    """A regular expression; a layer is left alone whose name (of the value that its down projection reads) it
    finds."""

    def requires(self, model: ir.Model) -> None:
        """Refuse options that mean nothing.

        Raises:
            PassRefused: what is wrong, and what to write instead.
        """
        check_share(self.text(), "share", self.share)
        check_choice(self.text(), "score", self.score, score_names())
        if self.multiple < 1:
            raise PassRefused(f"{self.text()}: multiple is {self.multiple}; it must be at least 1")
        check_pattern(self.text(), "skip", self.skip)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Choose in every layer, then cut all of them.

        Raises:
            PassRefused: no FFN was understood (with the nodes that stopped the search), the share is less
                than what goes at a time, or the score asks for what was not measured.
        """
        found = prune_groups(model.graph)
        groups = [group for group in found.of(Unit.CHANNEL) if not self._skips(group)]
        if not groups and found.of(Unit.CHANNEL):
            raise PassRefused(f"{self.text()}: skip finds every FFN of this graph; leave one to prune.")
        if not groups:
            raise PassRefused(nothing_to_prune(self.text(), "FFN channel", found))
        for refusal in found.refusals:
            notes.near_miss(WHAT, refusal.value.name, refusal.reason)
        try:
            cuts = self._cuts(groups)
        except Unmeasured as reason:
            raise PassRefused(f"{self.text()}: {reason}") from reason
        if not cuts:
            raise PassRefused(
                f"{self.text()}: {self.share:g} of {groups[0].units} channels is less than what goes at a "
                f"time ({granule(groups[0].units, self.multiple)}). Ask for more, or write multiple=1."
            )
        remember_unpruned(model)
        for cut in cuts:
            cut.make(model.graph)
            notes.match(WHAT, f"{cut.group.name}: {cut.group.units} -> {len(cut.kept)}")
        left = {cut.group.name: len(cut.kept) for cut in cuts}
        remember_units(model, found.of(Unit.CHANNEL), left)
        return ir.passes.PassResult(model, modified=True)

    def _skips(self, group: PruneGroup) -> bool:
        return bool(self.skip) and re.search(self.skip, group.name) is not None

    def _cuts(self, groups: list[PruneGroup]) -> list[Cut]:
        counts = [rounded(group.units, self.share, self.multiple) for group in groups]
        if self.uniform:
            orders = [removal(group, self.score, n).order for group, n in zip(groups, counts, strict=True)]
        else:
            orders = self._allocated(groups, counts)
        return [
            planned(group, order, fit=self.refit)
            for group, order in zip(groups, orders, strict=True)
            if order
        ]

    def _allocated(self, groups: list[PruneGroup], counts: list[int]) -> list[tuple[int, ...]]:
        """As many channels in all, at most twice the share of one layer."""
        most = [rounded(group.units, min(2 * self.share, 0.9), self.multiple) for group in groups]
        found = [removal(group, self.score, n) for group, n in zip(groups, most, strict=True)]
        step = min(granule(group.units, self.multiple) for group in groups)
        curves = [
            comparable(group, item)[step - 1 :: step] for group, item in zip(groups, found, strict=True)
        ]
        taken = cheapest(curves, sum(counts) // step)
        return [item.order[: steps * step] for item, steps in zip(found, taken, strict=True)]
