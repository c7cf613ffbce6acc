"""Remove chosen units of a group, and fit the matrices behind them to what is left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxforge.passes.prune_groups import Prunable, PruneGroup, Refusal
from onnxforge.passes.shrink import shrink
from onnxforge.passes.spilled import spilled
from onnxforge.passes.surgeon import refit
from onnxforge.passes.unit_scores import Unmeasured, readers_of


@dataclass(frozen=True, eq=False)
class Cut:
    """One group, the units of it that stay, and the matrices that make up for the others."""

    group: PruneGroup
    kept: tuple[int, ...]
    fitted: Mapping[ir.Value, np.ndarray]
    """By weight: float32 [K that stay, N]."""

    def make(self, graph: ir.Graph) -> None:
        """Shrink ``graph``."""
        shrink(graph, self.group, self.kept)
        for weight, matrix in self.fitted.items():
            weight.const_value = ir.tensor(matrix, name=weight.name)


def planned(group: PruneGroup, gone: Sequence[int], *, fit: bool) -> Cut:
    """The cut that removes the units ``gone``; changes nothing yet.

    With ``fit`` the matrices behind the units become those of :func:`~onnxforge.passes.surgeon.refit`, by the
    moments that ``correlate-inputs`` left.

    Raises:
        Unmeasured: there are none.
    """
    kept = tuple(unit for unit in range(group.units) if unit not in set(gone))
    return Cut(group, kept, _fitted(group, kept) if fit else {})


def _fitted(group: PruneGroup, kept: Sequence[int]) -> Mapping[ir.Value, np.ndarray]:
    found: dict[ir.Value, np.ndarray] = {}
    for reader in readers_of(group):
        moments = reader.moments()
        if moments is None:
            raise Unmeasured(
                f"{reader.values[0].name!r} has no moments; put `correlate-inputs` before this pass"
            )
        labels = group.labels_of(reader.values[0])
        entries = np.flatnonzero((labels < 0) | np.isin(labels, kept))
        found[reader.weight] = spilled(refit(moments, reader.matrix(), entries))
    return found


def nothing_to_prune(text: str, what: str, found: Prunable) -> str:
    """Why a pass found no group of the kind that it prunes: the first node of each kind that stopped it."""
    alike: dict[tuple[str, str], list[Refusal]] = {}
    for refusal in found.refusals:
        kind = refusal.node.op_type if refusal.node is not None else ""
        alike.setdefault((kind, refusal.reason), []).append(refusal)
    stops = [_stop(first, len(others)) for first, *others in alike.values()]
    listed = "; ".join(stops) if stops else "no constant matrix multiplies anything in it"
    return f"{text}: this graph has no {what} that can be removed. {listed}. See `inspect --prunable`."


def _stop(refusal: Refusal, others: int) -> str:
    node = refusal.node
    where = f"{node.op_type} {node.name!r}" if node is not None else "the graph"
    more = f" (as {others} more)" if others else ""
    return f"{where} stopped the search from {refusal.value.name!r}: {refusal.reason}{more}"
