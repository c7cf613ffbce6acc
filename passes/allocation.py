"""How much to remove of each group, so that the whole costs least."""

import heapq
from collections.abc import Sequence

import numpy as np

from onnxforge.passes.prune_groups import PruneGroup
from onnxforge.passes.surgeon import Removal
from onnxforge.passes.unit_damage import damage_of


def comparable(group: PruneGroup, found: Removal) -> tuple[float, ...]:
    """The costs of a removal on a scale that layers share.

    Where ``measure-damage`` has left what the model makes of it, that is the scale; else a cost counts by its
    share of all that the layer does. The error of a layer's output alone misleads: on SmolLM2-135M a tenth of
    all heads taken where it is least costs ten times as much as taken by these (docs/decisions/0025).
    """
    measured = damage_of(group.value)
    if measured is not None and found.costs:
        per_cost = measured.damage / max(
            found.costs[min(measured.units, len(found.costs)) - 1], np.finfo(float).tiny
        )
    else:
        per_cost = 1 / max(found.worth, np.finfo(float).tiny)
    return tuple(cost * per_cost for cost in found.costs)


def cheapest(curves: Sequence[Sequence[float]], wanted: int) -> tuple[int, ...]:
    """How many steps to take along each of ``curves``, ``wanted`` in all (fewer where they end).

    A curve holds the cost of the first step, of the first two, and so on; costs of different curves are
    compared, so they must be on one scale. Each step goes where it adds least; on convex curves that is the
    best there is.
    """
    taken = [0] * len(curves)
    waiting = [(curve[0], index) for index, curve in enumerate(curves) if len(curve)]
    heapq.heapify(waiting)
    for _ in range(wanted):
        if not waiting:
            break
        _, index = heapq.heappop(waiting)
        taken[index] += 1
        curve = curves[index]
        if taken[index] < len(curve):
            heapq.heappush(waiting, (curve[taken[index]] - curve[taken[index] - 1], index))
    return tuple(taken)


def granule(units: int, multiple: int) -> int:
    """How many of ``units`` go at a time: ``multiple``, halved until it is at most a sixteenth of all.

    A share of few units could not be met otherwise.
    """
    while multiple > 1 and multiple * 16 > units:
        multiple //= 2
    return multiple


def rounded(units: int, share: float, multiple: int) -> int:
    """How many of ``units`` to remove for ``share`` of them, so that a multiple of :func:`granule` is left.

    At least one such multiple stays.
    """
    multiple = granule(units, multiple)
    left = max(1, int(np.floor(units * (1 - share) / multiple + 0.5))) * multiple
    return max(0, units - left)
